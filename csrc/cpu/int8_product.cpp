#include "int8_product.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "levels.h"
#include "parallel.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#endif
#define LAD_LEVEL 2
namespace lad::vnni {
#include "lanes_body.h"
#include "parts_body.h"
#include "int8_product_body.h"
}  // namespace lad::vnni
#undef LAD_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace lad {

namespace {

// Rows that one task takes through a panel where there are few panels to share.
constexpr int64_t ROWS_PER_TASK = 20 * vnni::TILE_ROWS;

// A panel; every thread keeps its own.
uint8_t* panel_of(int64_t D) {
    static thread_local std::vector<uint8_t> bytes;
    const size_t size = static_cast<size_t>(vnni::whole_fours(D) * vnni::PANEL_COLUMNS + 64);
    if (bytes.size() < size) bytes.resize(size);
    void* start = bytes.data();
    size_t room = bytes.size();
    return static_cast<uint8_t*>(std::align(64, size - 64, start, room));
}

}  // namespace

bool multiplies_bytes() { return level() >= AVX512_VNNI; }

template <typename T>
void quantised_linear(Rows<const int8_t> x, const float* row_scale, Rows<const int8_t> weight, const float* scale, const float* bias,
                      int64_t N, int64_t O, int64_t D, Rows<T> y, int threads) {
    const int64_t panels = (O + vnni::PANEL_COLUMNS - 1) / vnni::PANEL_COLUMNS;
    // A part packs its panel anew, so rows are only split where threads would wait for one another.
    const int64_t parts = threads > 1 && panels < 16 * threads ? (N + ROWS_PER_TASK - 1) / ROWS_PER_TASK : 1;
    const int64_t rows = (N + parts - 1) / std::max<int64_t>(parts, 1), width = vnni::whole_fours(D);
    std::vector<int8_t> filled;
    if (width != D) {
        filled.resize(static_cast<size_t>(N * width));
        for (int64_t n = 0; n < N; ++n) std::memcpy(filled.data() + n * width, x[n], static_cast<size_t>(D));
        x = {filled.data(), width};
    }
    std::vector<int32_t> offsets(static_cast<size_t>(N));
    for (int64_t n = 0; n < N; ++n) offsets[static_cast<size_t>(n)] = vnni::offset_of(x[n], D);
    parallel_for(panels * parts, threads, [&](int64_t task) {
        const int64_t first = task / parts * vnni::PANEL_COLUMNS, count = std::min(O - first, vnni::PANEL_COLUMNS);
        uint8_t* panel = panel_of(D);
        vnni::pack_panel(weight[first], weight.stride, count, D, panel);
        const int64_t begin = task % parts * rows, end = std::min(N, begin + rows);
        for (int64_t n = begin; n < end; n += vnni::TILE_ROWS)
            vnni::tile(x[n], x.stride, offsets.data() + n, std::min(end - n, vnni::TILE_ROWS), panel, width, row_scale + n, scale + first,
                       bias ? bias + first : nullptr, count, y[n] + first, y.stride);
    });
}

}  // namespace lad

#else

namespace lad {

bool multiplies_bytes() { return false; }

template <typename T>
void quantised_linear(Rows<const int8_t>, const float*, Rows<const int8_t>, const float*, const float*, int64_t, int64_t, int64_t, Rows<T>,
                      int) {}

}  // namespace lad

#endif

namespace lad {

#define LAD_FOR(T)                                                                                                                \
    template void quantised_linear(Rows<const int8_t>, const float*, Rows<const int8_t>, const float*, const float*, int64_t, int64_t, \
                                   int64_t, Rows<T>, int);

LAD_FOR(float)
LAD_FOR(uint16_t)

}  // namespace lad
