// The loops of soft_scores.cpp; included once per instruction level by each_level.h.

typedef uint64_t U64 __attribute__((vector_size(64)));

// a * b in 64 bits, as its high and low words: the even lanes and the odd ones.
LAD_INLINE void products(U32 a, uint32_t b, U32& high, U32& low) {
    const U64 pairs = reinterpret_cast<U64>(a);
    const U64 even = (pairs & 0xFFFFFFFFull) * static_cast<uint64_t>(b), odd = (pairs >> 32) * static_cast<uint64_t>(b);
    high = reinterpret_cast<U32>((even >> 32) | (odd & ~0xFFFFFFFFull));
    low = reinterpret_cast<U32>((even & 0xFFFFFFFFull) | (odd << 32));
}

// The numbers of sixteen words strictly inside (0, 1).
LAD_INLINE F32 units(U32 word) {
    return (__builtin_convertvector(reinterpret_cast<I32>(word >> 9), F32) + 0.5f) * (1.0f / 8388608.0f);
}

// ln u for u in (0, 1), within 1 ulp: a polynomial on [sqrt(1/2), sqrt(2)] after the exponent is taken off (Cephes' coefficients).
LAD_INLINE F32 logarithm(F32 u) {
    const U32 bits = reinterpret_cast<U32>(u);
    I32 exponent = reinterpret_cast<I32>(bits >> 23) - 126;
    F32 m = reinterpret_cast<F32>((bits & 0x007FFFFFu) | 0x3F000000u);
    const I32 is_low = m < 0.707106781186547524f;
    exponent += is_low;
    m = (is_low != 0 ? m + m : m) - 1.0f;
    const F32 z = m * m, e = __builtin_convertvector(exponent, F32);
    F32 p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    F32 y = p * m * z + e * -2.12194440e-4f - 0.5f * z;
    return m + y + e * 0.693359375f;
}

LAD_INLINE F32 square_root(F32 x) {
    F32 out;
    for (int64_t i = 0; i < LANES; ++i) out[i] = __builtin_sqrtf(x[i]);
    return out;
}

// sqrt(-2 ln u) (cos, sin)(2 pi turn): the nearest quarter turn is taken off exactly, and the rest is a short series.
LAD_INLINE void normal_pairs(F32 u, F32 turn, F32& first, F32& second) {
    const I32 quarter = __builtin_convertvector(turn * 4.0f + 0.5f, I32);
    const F32 x = turn - __builtin_convertvector(quarter, F32) * 0.25f, y = x * x;
    F32 sine = y * 42.05869394489765f - 76.70585975306136f;
    sine = (((sine * y + 81.60524927607504f) * y - 41.34170224039976f) * y + 6.283185307179586f) * x;
    F32 cosine = y * -26.42625678337438f + 60.24464137187666f;
    cosine = (((cosine * y - 85.45681720669373f) * y + 64.93939402266829f) * y - 19.739208802178716f) * y + 1.0f;
    const I32 is_odd = (quarter & 1) != 0;
    const F32 along = is_odd != 0 ? sine : cosine, across = is_odd != 0 ? cosine : sine;
    const F32 radius = square_root(logarithm(u) * -2.0f);
    first = radius * (((quarter + 1) & 2) != 0 ? -along : along);
    second = radius * ((quarter & 2) != 0 ? -across : across);
}

// out[i] = spread * z_i for the 64 normal numbers of sixteen calls of the generator from call `group` on.
static void noise_block(int64_t seed, int64_t position, int64_t step, int64_t purpose, int64_t group, float spread, float* out) {
    U32 c0 = U32{} + static_cast<uint32_t>(position), c1 = U32{} + static_cast<uint32_t>(step);
    U32 c2 = U32{} + static_cast<uint32_t>(purpose), c3{};
    for (int64_t i = 0; i < LANES; ++i) c3[i] = static_cast<uint32_t>(group + i);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
    for (int round = 0; round < 10; ++round) {
        U32 first_high, first_low, second_high, second_low;
        products(c0, 0xD2511F53u, first_high, first_low);
        products(c2, 0xCD9E8D57u, second_high, second_low);
        c0 = second_high ^ c1 ^ k0;
        c1 = second_low;
        c2 = first_high ^ c3 ^ k1;
        c3 = first_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    F32 z[4];
    normal_pairs(units(c0), units(c1), z[0], z[1]);
    normal_pairs(units(c2), units(c3), z[2], z[3]);
    for (int64_t i = 0; i < LANES; ++i)
        for (int64_t j = 0; j < 4; ++j) out[4 * i + j] = spread * z[j][i];
}

static float largest_in(const float* x, int64_t count) {
    F32 top = load(x);
    for (int64_t i = LANES; i < count; i += LANES) top = largest(load(x + i), top);
    return largest_of(top);
}

// x[i] = exp(x[i] - top); returns the sum, in fp32 by lane for a stretch and in fp64 beyond it.
static double weigh(float* x, int64_t count, float top) {
    double total = 0;
    for (int64_t first = 0; first < count; first += 64 * LANES) {
        const int64_t stop = first + 64 * LANES < count ? first + 64 * LANES : count;
        F32 sum{};
        for (int64_t i = first; i < stop; i += LANES) {
            const F32 weight = exponential(load(x + i) - top);
            store(x + i, weight);
            sum += weight;
        }
        total += sum_of(sum);
    }
    return total;
}

// x[i] = x[i] * share + old[i] * old_share; old may be null.
static void average(float* x, const float* old, int64_t count, float share, float old_share) {
    for (int64_t i = 0; i < count; i += LANES)
        store(x + i, old == nullptr ? load(x + i) * share : load(x + i) * share + load(old + i) * old_share);
}

// x[i] = from[i] in fp32; whole groups of LANES only.
static void widen(const uint16_t* from, int64_t count, float* x) {
    for (int64_t i = 0; i < count; i += LANES) store(x + i, load(from + i));
}
