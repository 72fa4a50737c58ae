// A tile of TILE_ROWS rows times a panel of PANEL_COLUMNS columns by sums of four byte products (AVX-512 VNNI).
// One factor of that instruction is unsigned: the weights are moved up by 128, and 128 times the sum of a row is taken off its results.

constexpr int64_t TILE_ROWS = 6, PANEL_COLUMNS = 4 * LANES;
constexpr int32_t MOVED_BY = 128;

// A row of D filled up to whole groups of four bytes.
constexpr int64_t whole_fours(int64_t D) { return (D + 3) / 4 * 4; }

// Up to 64 bytes of a row, zeros behind them.
LAD_INLINE __m512i bytes_of(const int8_t* from, int64_t count) {
    if (count >= 64) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi8(count > 0 ? (1ull << count) - 1 : 0, from);
}

// -128 times the sum of a row: what its results begin with.
static int32_t offset_of(const int8_t* x, int64_t D) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t d = 0; d < D; d += 64) sum = _mm512_dpbusd_epi32(sum, ones, bytes_of(x + d, D - d));
    int32_t parts[LANES], whole = 0;
    _mm512_storeu_si512(parts, sum);
    for (int32_t part : parts) whole += part;
    return -MOVED_BY * whole;
}

// Two 128-bit quarters of each. Shuffles here are masked by all lanes: GCC 12 warns of a temporary of the unmasked ones.
template <int WHICH>
LAD_INLINE __m512i quarters(__m512i first, __m512i second) {
    return _mm512_maskz_shuffle_i32x4(0xffff, first, second, WHICH);
}

// Four bytes of each of 16 rows side by side: the transpose of 16 x 16 groups of four.
LAD_INLINE void turn(__m512i (&rows)[16]) {
    __m512i a[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_maskz_unpacklo_epi32(0xffff, rows[i], rows[i + 1]);
        a[i + 1] = _mm512_maskz_unpackhi_epi32(0xffff, rows[i], rows[i + 1]);
    }
    // rows[4 q + p]: column 4 lane + p of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_maskz_unpacklo_epi64(0xff, a[i], a[i + 2]);
        rows[i + 1] = _mm512_maskz_unpackhi_epi64(0xff, a[i], a[i + 2]);
        rows[i + 2] = _mm512_maskz_unpacklo_epi64(0xff, a[i + 1], a[i + 3]);
        rows[i + 3] = _mm512_maskz_unpackhi_epi64(0xff, a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
        const __m512i even = quarters<0x88>(rows[p], rows[4 + p]), odd = quarters<0xdd>(rows[p], rows[4 + p]);
        const __m512i even_below = quarters<0x88>(rows[8 + p], rows[12 + p]), odd_below = quarters<0xdd>(rows[8 + p], rows[12 + p]);
        a[p] = quarters<0x88>(even, even_below);
        a[8 + p] = quarters<0xdd>(even, even_below);
        a[4 + p] = quarters<0x88>(odd, odd_below);
        a[12 + p] = quarters<0xdd>(odd, odd_below);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = a[i];
}

// `count` rows of the weight as [D/4, PANEL_COLUMNS, 4] moved up by 128; columns beyond them hold anything.
static void pack_panel(const int8_t* weight, int64_t stride, int64_t count, int64_t D, uint8_t* panel) {
    const __m512i moved = _mm512_set1_epi8(static_cast<char>(MOVED_BY));
    for (int64_t group = 0; group * LANES < count; ++group)
        for (int64_t d = 0; d < D; d += 64) {
            __m512i rows[16];
            for (int64_t i = 0; i < LANES; ++i) {
                const int64_t row = group * LANES + i;
                rows[i] = bytes_of(weight + (row < count ? row : count - 1) * stride + d, D - d);
            }
            turn(rows);
            uint8_t* to = panel + d * PANEL_COLUMNS + group * LANES * 4;
            const int64_t blocks = whole_fours(D - d) / 4;
            for (int64_t i = 0; i < LANES && i < blocks; ++i) _mm512_store_si512(to + i * PANEL_COLUMNS * 4, _mm512_xor_si512(rows[i], moved));
        }
}

// [M, PANEL_COLUMNS] sums of M rows times a panel; `width` bytes of every row, a multiple of 4.
template <int M>
static void sums_of(const int8_t* x, int64_t stride, const int32_t* offsets, const uint8_t* panel, int64_t width, int32_t* sums) {
    __m512i sum[M][4];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) sum[m][g] = _mm512_set1_epi32(offsets[m]);
    for (int64_t d = 0; d < width; d += 4, panel += 4 * PANEL_COLUMNS) {
        const __m512i w0 = _mm512_load_si512(panel), w1 = _mm512_load_si512(panel + 64);
        const __m512i w2 = _mm512_load_si512(panel + 128), w3 = _mm512_load_si512(panel + 192);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
            int32_t four;
            __builtin_memcpy(&four, x + m * stride + d, sizeof four);
            const __m512i bytes = _mm512_set1_epi32(four);
            sum[m][0] = _mm512_dpbusd_epi32(sum[m][0], w0, bytes);
            sum[m][1] = _mm512_dpbusd_epi32(sum[m][1], w1, bytes);
            sum[m][2] = _mm512_dpbusd_epi32(sum[m][2], w2, bytes);
            sum[m][3] = _mm512_dpbusd_epi32(sum[m][3], w3, bytes);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) _mm512_store_si512(sums + m * PANEL_COLUMNS + g * LANES, sum[m][g]);
}

// y = round(sums * row_scale * scale + bias) of M rows, at most TILE_ROWS, and the panel's first `count` columns.
template <typename T>
static void tile(const int8_t* x, int64_t stride, const int32_t* offsets, int64_t M, const uint8_t* panel, int64_t width, const float* row_scale,
                 const float* scale, const float* bias, int64_t count, T* y, int64_t y_stride) {
    alignas(64) int32_t sums[TILE_ROWS * PANEL_COLUMNS];
    switch (M) {
        case 1: sums_of<1>(x, stride, offsets, panel, width, sums); break;
        case 2: sums_of<2>(x, stride, offsets, panel, width, sums); break;
        case 3: sums_of<3>(x, stride, offsets, panel, width, sums); break;
        case 4: sums_of<4>(x, stride, offsets, panel, width, sums); break;
        case 5: sums_of<5>(x, stride, offsets, panel, width, sums); break;
        default: sums_of<6>(x, stride, offsets, panel, width, sums);
    }
    for (int64_t m = 0; m < M; ++m) dequantise_row<T>(sums + m * PANEL_COLUMNS, row_scale[m], scale, bias, count, y + m * y_stride);
}
