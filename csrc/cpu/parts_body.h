// What several bodies do with a row: its last lanes, rounding, converting, rotating, scaling; T is float, or uint16_t for bfloat16.

template <typename T>
LAD_INLINE F32 load_part(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T padded[LANES] = {};
    __builtin_memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
    return load(padded);
}

template <typename T>
LAD_INLINE void store_part(T* to, F32 value, int64_t count) {
    if (count <= 0) return;
    if (count >= LANES) return store(to, value);
    T padded[LANES];
    store(padded, value);
    __builtin_memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
}

template <typename T>
LAD_INLINE F32 rounded(F32 value) {
    if (sizeof(T) == sizeof(float)) return value;
    const U32 bits = reinterpret_cast<U32>(value);
    const F32 out = reinterpret_cast<F32>((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
    return value == value ? out : value;
}

// y = round(sums * row_scale * scale + bias).
template <typename T>
static void dequantise_row(const int32_t* sums, float row_scale, const float* scale, const float* bias, int64_t O, T* y) {
    for (int64_t o = 0; o < O; o += LANES) {
        F32 value = load_part(sums + o, O - o) * row_scale * load_part(scale + o, O - o);
        if (bias) value += load_part(bias + o, O - o);
        store_part(y + o, value, O - o);
    }
}

// The rotation of one head's pairs (x_i, x_{i + half}) by its position's angles.
template <typename T, typename U>
static void rotate_head(const T* x, const float* cos, const float* sin, int64_t half, float factor, U* y) {
    for (int64_t i = 0; i < half; i += LANES) {
        const F32 first = load_part(x + i, half - i), second = load_part(x + half + i, half - i);
        const F32 c = load_part(cos + i, half - i), s = load_part(sin + i, half - i);
        store_part(y + i, rounded<T>(first * c - second * s) * factor, half - i);
        store_part(y + half + i, rounded<T>(second * c + first * s) * factor, half - i);
    }
}

template <typename T, typename U>
static void convert_row(const T* x, int64_t D, U* y) {
    for (int64_t d = 0; d < D; d += LANES) store_part(y + d, load_part(x + d, D - d), D - d);
}
