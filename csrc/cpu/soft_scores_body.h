// The loops of soft_scores.cpp; included once per instruction level by each_level.h.

// a * b in 64 bits, as its high and low words: the even lanes and the odd ones.
LAD_INLINE void products(U32 a, uint32_t b, U32& high, U32& low) {
    const auto pairs = longs_of(a), even = (pairs & 0xFFFFFFFFull) * static_cast<uint64_t>(b), odd = (pairs >> 32) * static_cast<uint64_t>(b);
    high = bits_of((even >> 32) | (odd & ~0xFFFFFFFFull));
    low = bits_of((even & 0xFFFFFFFFull) | (odd << 32));
}

// The numbers of sixteen words strictly inside (0, 1).
LAD_INLINE F32 units(U32 word) { return (to_floats(signed_of(word >> 9)) + 0.5f) * (1.0f / 8388608.0f); }

// ln u for u in (0, 1), within 1 ulp: a polynomial on [sqrt(1/2), sqrt(2)] after the exponent is taken off (Cephes' coefficients).
LAD_INLINE F32 logarithm(F32 u) {
    const U32 bits = bits_of(u);
    F32 m = floats_of((bits & 0x007FFFFFu) | 0x3F000000u);
    const I32 is_low = m < 0.707106781186547524f, exponent = signed_of(bits >> 23) - 126 + is_low;
    m = pick(is_low, m + m, m) - 1.0f;
    const F32 z = m * m, e = to_floats(exponent);
    F32 p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const F32 y = p * m * z + e * -2.12194440e-4f - z * 0.5f;
    return m + y + e * 0.693359375f;
}

LAD_INLINE F32 square_root(F32 x) {
    float lanes[LANES];
    store(lanes, x);
    for (float& lane : lanes) lane = __builtin_sqrtf(lane);
    return load(lanes);
}

// sqrt(-2 ln u) (cos, sin)(2 pi turn): the nearest quarter turn is taken off exactly, and the rest is a short series.
LAD_INLINE void normal_pairs(F32 u, F32 turn, F32& first, F32& second) {
    const I32 quarter = to_whole(turn * 4.0f + 0.5f);
    const F32 x = turn - to_floats(quarter) * 0.25f, y = x * x;
    F32 sine = y * 42.05869394489765f - 76.70585975306136f;
    sine = (((sine * y + 81.60524927607504f) * y - 41.34170224039976f) * y + 6.283185307179586f) * x;
    F32 cosine = y * -26.42625678337438f + 60.24464137187666f;
    cosine = (((cosine * y - 85.45681720669373f) * y + 64.93939402266829f) * y - 19.739208802178716f) * y + 1.0f;
    const I32 is_odd = (quarter & 1) != 0;
    const F32 along = pick(is_odd, sine, cosine), across = pick(is_odd, cosine, sine);
    const F32 radius = square_root(logarithm(u) * -2.0f);
    first = radius * pick(((quarter + 1) & 2) != 0, -along, along);
    second = radius * pick((quarter & 2) != 0, -across, across);
}

// out[i] = spread * z_i for the 64 normal numbers of sixteen calls of the generator from call `group` on.
static void noise_block(int64_t seed, int64_t position, int64_t step, int64_t purpose, int64_t group, float spread, float* out) {
    U32 c0 = U32{} + static_cast<uint32_t>(position), c1 = U32{} + static_cast<uint32_t>(step);
    uint32_t groups[LANES];
    for (int64_t i = 0; i < LANES; ++i) groups[i] = static_cast<uint32_t>(group + i);
    U32 c2 = U32{} + static_cast<uint32_t>(purpose), c3 = load_words(groups);
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
    F32 z0, z1, z2, z3;
    normal_pairs(units(c0), units(c1), z0, z1);
    normal_pairs(units(c2), units(c3), z2, z3);
    float z[4][LANES];
    store(z[0], z0 * spread);
    store(z[1], z1 * spread);
    store(z[2], z2 * spread);
    store(z[3], z3 * spread);
    for (int64_t i = 0; i < LANES; ++i)
        for (int64_t j = 0; j < 4; ++j) out[4 * i + j] = z[j][i];
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
