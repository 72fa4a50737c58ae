// Sixteen numbers at a time in the compiler's own vector types; included once per instruction level by each_level.h.

typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef int8_t I8 __attribute__((vector_size(16)));

#define LAD_INLINE static inline __attribute__((always_inline))

constexpr int64_t LANES = 16;

LAD_INLINE F32 all(float value) { return value - F32{}; }

LAD_INLINE F32 load(const float* from) {
    F32 out;
    __builtin_memcpy(&out, from, sizeof out);
    return out;
}

LAD_INLINE F32 load(const uint16_t* from) {
    U16 bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return reinterpret_cast<F32>(__builtin_convertvector(bits, U32) << 16);
}

LAD_INLINE F32 load(const int32_t* from) {
    I32 whole;
    __builtin_memcpy(&whole, from, sizeof whole);
    return __builtin_convertvector(whole, F32);
}

LAD_INLINE void store(float* to, F32 value) { __builtin_memcpy(to, &value, sizeof value); }

// bfloat16, rounded to nearest even; NaN stays NaN.
LAD_INLINE void store(uint16_t* to, F32 value) {
    const U32 bits = reinterpret_cast<U32>(value);
    const U32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const U16 out = __builtin_convertvector(value == value ? rounded : rounded * 0u + 0x7FC0u, U16);
    __builtin_memcpy(to, &out, sizeof out);
}

LAD_INLINE F32 largest(F32 a, F32 b) { return a > b ? a : b; }

LAD_INLINE F32 magnitude(F32 value) { return reinterpret_cast<F32>(reinterpret_cast<U32>(value) & 0x7FFFFFFFu); }

// The lanes moved down by `by`, around the end.
#if defined(__clang__)
#define LAD_TURNED(v, by)                                                                                                            \
    __builtin_shufflevector(v, v, (0 + by) % 16, (1 + by) % 16, (2 + by) % 16, (3 + by) % 16, (4 + by) % 16, (5 + by) % 16,          \
                            (6 + by) % 16, (7 + by) % 16, (8 + by) % 16, (9 + by) % 16, (10 + by) % 16, (11 + by) % 16,              \
                            (12 + by) % 16, (13 + by) % 16, (14 + by) % 16, (15 + by) % 16)
#else
#define LAD_TURNED(v, by) __builtin_shuffle(v, (I32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + by) & 15)
#endif

LAD_INLINE float largest_of(F32 value) {
    value = largest(value, LAD_TURNED(value, 8));
    value = largest(value, LAD_TURNED(value, 4));
    value = largest(value, LAD_TURNED(value, 2));
    return largest(value, LAD_TURNED(value, 1))[0];
}

LAD_INLINE double sum_of(F32 value) {
    double sum = 0;
    for (int64_t i = 0; i < LANES; ++i) sum += static_cast<double>(value[i]);
    return sum;
}

// To the nearest whole number, ties to even, for magnitudes below 2^22.
LAD_INLINE F32 whole(F32 value) { return (value + 12582912.0f) - 12582912.0f; }

// e^x within 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients); 0 below -87.3, capped above 88.
LAD_INLINE F32 exponential(F32 x) {
    const F32 bounded = x < 88.0f ? (x > -87.3f ? x : all(-87.3f)) : all(88.0f);
    const F32 n = whole(bounded * 1.44269504f);
    const F32 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    const F32 power = reinterpret_cast<F32>((__builtin_convertvector(n, I32) + 127) << 23);
    return x > -87.3f ? p * power : F32{};
}
