// The loops of token_scan.cpp over one block of logits; its length is a multiple of PIECE.

// Largest score of every PIECE ids.
static void piece_tops(const float* x, int64_t count, float* tops) {
    for (int64_t first = 0; first < count; first += PIECE) {
        F32 a = load(x + first), b = load(x + first + LANES);
        for (int64_t i = 2 * LANES; i < PIECE; i += 2 * LANES) {
            a = largest(load(x + first + i), a);
            b = largest(load(x + first + i + LANES), b);
        }
        tops[first / PIECE] = largest_of(largest(a, b));
    }
}

// Sum of exp((x - top) * inverse), in fp32 by lane and in fp64 across lanes.
static double block_mass(const float* x, int64_t count, float top, float inverse) {
    F32 a{}, b{};
    for (int64_t i = 0; i < count; i += 2 * LANES) {
        a += exponential((load(x + i) - top) * inverse);
        b += exponential((load(x + i + LANES) - top) * inverse);
    }
    return sum_of(a) + sum_of(b);
}

static void block_weights(const float* x, int64_t count, float top, float inverse, float* out) {
    for (int64_t i = 0; i < count; i += LANES) store(out + i, exponential((load(x + i) - top) * inverse));
}

// Whole groups of LANES only.
static void widen(const uint16_t* x, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += LANES) store(out + i, load(x + i));
}

static float exponential_of(float x) { return first_of(exponential(all(x))); }
