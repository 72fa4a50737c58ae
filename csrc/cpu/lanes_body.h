// Sixteen numbers at a time; included once per instruction level by each_level.h.
// One native vector with AVX-512. Elsewhere pairs of smaller ones, written out: GCC 12 would take a larger vector through memory at every
// operation (swiglu on AVX2: 8 times the time).

#define LAD_INLINE static inline __attribute__((always_inline))

constexpr int64_t LANES = 16;

#if LAD_LEVEL >= 2
constexpr int64_t NATIVE_LANES = 16;
#elif LAD_LEVEL == 1
constexpr int64_t NATIVE_LANES = 8;
#else
constexpr int64_t NATIVE_LANES = 4;
#endif

typedef float NativeF32 __attribute__((vector_size(NATIVE_LANES * 4)));
typedef int32_t NativeI32 __attribute__((vector_size(NATIVE_LANES * 4)));
typedef uint32_t NativeU32 __attribute__((vector_size(NATIVE_LANES * 4)));
typedef uint64_t NativeU64 __attribute__((vector_size(NATIVE_LANES * 4)));
typedef uint16_t NativeU16 __attribute__((vector_size(NATIVE_LANES * 2)));
typedef int8_t NativeI8 __attribute__((vector_size(NATIVE_LANES)));

template <typename V>
struct Pair {
    V low, high;
};

#if LAD_LEVEL >= 2
typedef NativeF32 F32;
typedef NativeI32 I32;
typedef NativeU32 U32;
#elif LAD_LEVEL == 1
typedef Pair<NativeF32> F32;
typedef Pair<NativeI32> I32;
typedef Pair<NativeU32> U32;
#else
typedef Pair<Pair<NativeF32>> F32;
typedef Pair<Pair<NativeI32>> I32;
typedef Pair<Pair<NativeU32>> U32;
#endif

template <typename V>
LAD_INLINE Pair<V> paired(V low, V high) {
    return {low, high};
}

// What a vector can do by itself, a pair does half by half.
#define LAD_BOTH(op)                                              \
    template <typename V>                                         \
    LAD_INLINE auto operator op(Pair<V> a, Pair<V> b) {           \
        return paired(a.low op b.low, a.high op b.high);          \
    }                                                             \
    template <typename V, typename S>                             \
    LAD_INLINE auto operator op(Pair<V> a, S b) {                 \
        return paired(a.low op b, a.high op b);                   \
    }
LAD_BOTH(+)
LAD_BOTH(-)
LAD_BOTH(*)
LAD_BOTH(/)
LAD_BOTH(&)
LAD_BOTH(|)
LAD_BOTH(^)
LAD_BOTH(<<)
LAD_BOTH(>>)
LAD_BOTH(<)
LAD_BOTH(>)
LAD_BOTH(==)
LAD_BOTH(!=)
#undef LAD_BOTH

template <typename V>
LAD_INLINE Pair<V> operator-(Pair<V> a) {
    return {-a.low, -a.high};
}

template <typename V, typename S>
LAD_INLINE Pair<V>& operator+=(Pair<V>& a, S b) {
    return a = a + b;
}

// The function of a native vector, and of the halves of a pair.
#define LAD_OF_PAIR(name)                             \
    template <typename V>                             \
    LAD_INLINE auto name(Pair<V> of) {                \
        return paired(name(of.low), name(of.high));   \
    }
LAD_INLINE NativeU32 bits_of(NativeF32 of) { return reinterpret_cast<NativeU32>(of); }
LAD_INLINE NativeU32 bits_of(NativeU64 of) { return reinterpret_cast<NativeU32>(of); }
LAD_INLINE NativeF32 floats_of(NativeU32 of) { return reinterpret_cast<NativeF32>(of); }
LAD_INLINE NativeF32 floats_of(NativeI32 of) { return reinterpret_cast<NativeF32>(of); }
LAD_INLINE NativeI32 signed_of(NativeU32 of) { return reinterpret_cast<NativeI32>(of); }
LAD_INLINE NativeU64 longs_of(NativeU32 of) { return reinterpret_cast<NativeU64>(of); }
// Towards zero.
LAD_INLINE NativeI32 to_whole(NativeF32 of) { return __builtin_convertvector(of, NativeI32); }
LAD_INLINE NativeF32 to_floats(NativeI32 of) { return __builtin_convertvector(of, NativeF32); }
LAD_OF_PAIR(bits_of)
LAD_OF_PAIR(floats_of)
LAD_OF_PAIR(signed_of)
LAD_OF_PAIR(longs_of)
LAD_OF_PAIR(to_whole)
LAD_OF_PAIR(to_floats)
#undef LAD_OF_PAIR

LAD_INLINE NativeF32 pick(NativeI32 where, NativeF32 a, NativeF32 b) { return where ? a : b; }
LAD_INLINE NativeU32 pick(NativeI32 where, NativeU32 a, NativeU32 b) { return where ? a : b; }

template <typename M, typename V>
LAD_INLINE Pair<V> pick(Pair<M> where, Pair<V> a, Pair<V> b) {
    return {pick(where.low, a.low, b.low), pick(where.high, a.high, b.high)};
}

template <typename V>
constexpr int64_t lanes_of = static_cast<int64_t>(sizeof(V) / 4);

LAD_INLINE void read(const float* from, NativeF32& to) { __builtin_memcpy(&to, from, sizeof to); }

LAD_INLINE void read(const uint32_t* from, NativeU32& to) { __builtin_memcpy(&to, from, sizeof to); }

LAD_INLINE void read(const uint16_t* from, NativeF32& to) {
    NativeU16 bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    to = floats_of(__builtin_convertvector(bits, NativeU32) << 16);
}

LAD_INLINE void read(const int32_t* from, NativeF32& to) {
    NativeI32 whole;
    __builtin_memcpy(&whole, from, sizeof whole);
    to = to_floats(whole);
}

template <typename T, typename V>
LAD_INLINE void read(const T* from, Pair<V>& to) {
    read(from, to.low);
    read(from + lanes_of<V>, to.high);
}

template <typename T>
LAD_INLINE F32 load(const T* from) {
    F32 out;
    read(from, out);
    return out;
}

LAD_INLINE U32 load_words(const uint32_t* from) {
    U32 out;
    read(from, out);
    return out;
}

LAD_INLINE void store(float* to, NativeF32 value) { __builtin_memcpy(to, &value, sizeof value); }

// bfloat16, rounded to nearest even; NaN stays NaN.
LAD_INLINE void store(uint16_t* to, NativeF32 value) {
    const NativeU32 bits = bits_of(value);
    const NativeU32 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const NativeU16 out = __builtin_convertvector(value == value ? rounded : rounded * 0u + 0x7FC0u, NativeU16);
    __builtin_memcpy(to, &out, sizeof out);
}

// Within the range of int8.
LAD_INLINE void store(int8_t* to, NativeI32 value) {
    const NativeI8 narrow = __builtin_convertvector(value, NativeI8);
    __builtin_memcpy(to, &narrow, sizeof narrow);
}

template <typename T, typename V>
LAD_INLINE void store(T* to, Pair<V> value) {
    store(to, value.low);
    store(to + lanes_of<V>, value.high);
}

LAD_INLINE F32 all(float value) { return F32{} + value; }

template <typename V>
LAD_INLINE V largest(V a, V b) {
    return pick(a > b, a, b);
}

LAD_INLINE F32 magnitude(F32 value) { return floats_of(bits_of(value) & 0x7FFFFFFFu); }

LAD_INLINE float first_of(NativeF32 value) { return value[0]; }

template <typename V>
LAD_INLINE float first_of(Pair<V> value) {
    return first_of(value.low);
}

// Halves against each other, then their halves.
#if defined(__clang__)
LAD_INLINE float largest_of(NativeF32 value) {
    float lanes[NATIVE_LANES];
    store(lanes, value);
    for (int64_t half = NATIVE_LANES / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}
#else
#if LAD_LEVEL >= 2
#define LAD_PLACES 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif LAD_LEVEL == 1
#define LAD_PLACES 0, 1, 2, 3, 4, 5, 6, 7
#else
#define LAD_PLACES 0, 1, 2, 3
#endif
LAD_INLINE float largest_of(NativeF32 value) {
    const NativeI32 places{LAD_PLACES};
#pragma GCC unroll 4
    for (int by = NATIVE_LANES / 2; by > 0; by /= 2) value = largest(value, __builtin_shuffle(value, (places + by) & (NATIVE_LANES - 1)));
    return value[0];
}
#undef LAD_PLACES
#endif

template <typename V>
LAD_INLINE float largest_of(Pair<V> value) {
    return largest_of(largest(value.low, value.high));
}

LAD_INLINE double sum_of(F32 value) {
    float lanes[LANES];
    store(lanes, value);
    double sum = 0;
    for (float lane : lanes) sum += static_cast<double>(lane);
    return sum;
}

// To the nearest whole number, ties to even, for magnitudes below 2^22.
LAD_INLINE F32 whole(F32 value) { return (value + 12582912.0f) - 12582912.0f; }

// e^x within 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients); 0 below -87.3, capped above 88.
LAD_INLINE F32 exponential(F32 x) {
    const F32 bounded = pick(x < 88.0f, pick(x > -87.3f, x, all(-87.3f)), all(88.0f));
    const F32 n = whole(bounded * 1.44269504f);
    const F32 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    const F32 power = floats_of((to_whole(n) + 127) << 23);
    return pick(x > -87.3f, p * power, F32{});
}
