// The last lanes of a row, roundings, and the scaling of integer sums; T is float, or uint16_t for bfloat16.

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
