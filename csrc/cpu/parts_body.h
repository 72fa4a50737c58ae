// What several bodies do with a row: its last lanes, rounding, converting, rotating, scaling; T is float, or uint16_t for bfloat16.

template <typename T>
LAD_INLINE F32 load_part(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T padded[LANES] = {};
    __builtin_memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
    return load(padded);
}

template <typename T, typename V>
LAD_INLINE void store_part(T* to, V value, int64_t count) {
    if (count <= 0) return;
    if (count >= LANES) return store(to, value);
    T padded[LANES];
    store(padded, value);
    __builtin_memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
}

// The same, with `fill` in the lanes that are not there.
LAD_INLINE F32 load_filled(const float* from, int64_t count, float fill) {
    float padded[LANES];
    for (int64_t i = 0; i < LANES; ++i) padded[i] = i < count ? from[i] : fill;
    return load(padded);
}

// Call body(first, count) for every LANES of D numbers; `count` is a constant for all but the last, so that only they look at it.
template <typename Body>
LAD_INLINE void for_lanes(int64_t D, const Body& body) {
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) body(d, LANES);
    if (d < D) body(d, D - d);
}

#define LAD_BODY_OF(d, count) [&](int64_t d, int64_t count) __attribute__((always_inline))

template <typename T>
LAD_INLINE F32 rounded(F32 value) {
    if (sizeof(T) == sizeof(float)) return value;
    const U32 bits = bits_of(value);
    return pick(value == value, floats_of((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u), value);
}

// y = round(sums * row_scale * scale + bias).
template <typename T>
static void dequantise_row(const int32_t* sums, float row_scale, const float* scale, const float* bias, int64_t O, T* y) {
    for_lanes(O, LAD_BODY_OF(o, count) {
        F32 value = load_part(sums + o, count) * row_scale * load_part(scale + o, count);
        if (bias) value += load_part(bias + o, count);
        store_part(y + o, value, count);
    });
}

// The rotation of one head's pairs (x_i, x_{i + half}) by its position's angles.
template <typename T, typename U>
static void rotate_head(const T* x, const float* cos, const float* sin, int64_t half, float factor, U* y) {
    for_lanes(half, LAD_BODY_OF(i, count) {
        const F32 first = load_part(x + i, count), second = load_part(x + half + i, count);
        const F32 c = load_part(cos + i, count), s = load_part(sin + i, count);
        store_part(y + i, rounded<T>(first * c - second * s) * factor, count);
        store_part(y + half + i, rounded<T>(second * c + first * s) * factor, count);
    });
}

template <typename T, typename U>
static void convert_row(const T* x, int64_t D, U* y) {
    for_lanes(D, LAD_BODY_OF(d, count) { store_part(y + d, load_part(x + d, count), count); });
}
