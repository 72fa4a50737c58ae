// A few query rows against all keys of their group; PANEL columns of a product are side by side in memory.
#include "parts_body.h"

constexpr int64_t PANEL = 64, TILE_ROWS = 6;

// As many numbers as one instruction takes, and as many of them side by side as leave registers for TILE_ROWS rows.
#if LAD_LEVEL >= 2
typedef __m512 Native;
constexpr int64_t NATIVE = 16, SIDE_BY_SIDE = 4;
LAD_INLINE Native native_of(float value) { return _mm512_set1_ps(value); }
LAD_INLINE Native native_at(const float* from) { return _mm512_loadu_ps(from); }
LAD_INLINE void put(float* to, Native value) { _mm512_storeu_ps(to, value); }
LAD_INLINE Native fused(Native a, Native b, Native sum) { return _mm512_fmadd_ps(a, b, sum); }
#elif LAD_LEVEL == 1
typedef __m256 Native;
constexpr int64_t NATIVE = 8, SIDE_BY_SIDE = 2;
LAD_INLINE Native native_of(float value) { return _mm256_set1_ps(value); }
LAD_INLINE Native native_at(const float* from) { return _mm256_loadu_ps(from); }
LAD_INLINE void put(float* to, Native value) { _mm256_storeu_ps(to, value); }
LAD_INLINE Native fused(Native a, Native b, Native sum) { return _mm256_fmadd_ps(a, b, sum); }
#else
// Compiled so that every level has the same names; `attends()` keeps it from being called.
typedef float Native;
constexpr int64_t NATIVE = 1, SIDE_BY_SIDE = 1;
LAD_INLINE Native native_of(float value) { return value; }
LAD_INLINE Native native_at(const float* from) { return *from; }
LAD_INLINE void put(float* to, Native value) { *to = value; }
LAD_INLINE Native fused(Native a, Native b, Native sum) { return a * b + sum; }
#endif

// c = a b, or c + a b where `adds`: M rows of a times `depth` rows of a panel. Every sum is one chain in the order of the depth.
template <int M>
static void tile(const float* a, int64_t a_stride, const float* b, int64_t depth, bool adds, float* c, int64_t c_stride) {
    for (int64_t first = 0; first < PANEL; first += NATIVE * SIDE_BY_SIDE) {
        Native sum[M][SIDE_BY_SIDE];
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int i = 0; i < SIDE_BY_SIDE; ++i) sum[m][i] = adds ? native_at(c + m * c_stride + first + i * NATIVE) : native_of(0.0f);
        for (int64_t d = 0; d < depth; ++d) {
            Native side[SIDE_BY_SIDE];
#pragma GCC unroll 4
            for (int i = 0; i < SIDE_BY_SIDE; ++i) side[i] = native_at(b + d * PANEL + first + i * NATIVE);
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m) {
                const Native one = native_of(a[m * a_stride + d]);
#pragma GCC unroll 4
                for (int i = 0; i < SIDE_BY_SIDE; ++i) sum[m][i] = fused(one, side[i], sum[m][i]);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int i = 0; i < SIDE_BY_SIDE; ++i) put(c + m * c_stride + first + i * NATIVE, sum[m][i]);
    }
}

static void tiles(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t depth, bool adds, float* c, int64_t c_stride) {
    for (; rows > 0; rows -= TILE_ROWS, a += TILE_ROWS * a_stride, c += TILE_ROWS * c_stride) {
        switch (rows) {
            case 1: tile<1>(a, a_stride, b, depth, adds, c, c_stride); break;
            case 2: tile<2>(a, a_stride, b, depth, adds, c, c_stride); break;
            case 3: tile<3>(a, a_stride, b, depth, adds, c, c_stride); break;
            case 4: tile<4>(a, a_stride, b, depth, adds, c, c_stride); break;
            case 5: tile<5>(a, a_stride, b, depth, adds, c, c_stride); break;
            default: tile<6>(a, a_stride, b, depth, adds, c, c_stride);
        }
    }
}

// x = exp(x - max) over the first `count` scores; returns 1 / their sum, 0 where there is none.
static float weigh(float* x, int64_t count) {
    if (count == 0) return 0.0f;
    const int64_t groups = count / LANES * LANES;
    F32 tops = all(-__builtin_inff());
    for (int64_t i = 0; i < groups; i += LANES) tops = largest(load(x + i), tops);
    const F32 rest = load_filled(x + groups, count - groups, -__builtin_inff());
    const float top = largest_of(largest(rest, tops));
    F32 sums{};
    for (int64_t i = 0; i < groups; i += LANES) {
        const F32 weight = exponential(load(x + i) - top);
        sums += weight;
        store(x + i, weight);
    }
    const F32 last = exponential(rest - top);
    store_part(x + groups, last, count - groups);
    return static_cast<float>(1.0 / (sum_of(sums) + sum_of(last)));
}

// found = softmax(queries keys) values but for the factors `inverse`; rows of K, of `width` scores and of found_stride.
static void attend(const float* queries, int64_t rows, int64_t K, const float* keys, const float* values, int64_t positions, int64_t count,
                   float* scores, int64_t width, float* inverse, float* found, int64_t found_stride) {
    for (int64_t t = 0; t < count; t += PANEL) tiles(queries, K, rows, keys + t * K, K, false, scores + t, width);
    for (int64_t i = 0; i < rows; ++i) inverse[i] = weigh(scores + i * width, count);
    for (int64_t k = 0; k < K; k += PANEL)
        for (int64_t t = 0; t < count || t == 0; t += PANEL) {
            const int64_t depth = count - t < PANEL ? count - t : PANEL;
            tiles(scores + t, width, rows, values + k * positions + t * PANEL, depth, t > 0, found + k, found_stride);
        }
}

template <typename T>
static void scaled_row(const float* x, float factor, int64_t D, T* y) {
    for_lanes(D, LAD_BODY_OF(d, count) { store_part(y + d, load_part(x + d, count) * factor, count); });
}
