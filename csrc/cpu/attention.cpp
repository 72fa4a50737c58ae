#include "attention.h"

#include <algorithm>
#include <vector>

#include "levels.h"
#include "parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LAD_BODY "attention_body.h"
#include "each_level.h"

namespace lad {

namespace {

// Query rows of a task: with the scores of 256 keys they fill half of a first-level cache of 48 KB.
constexpr int64_t BLOCK_ROWS = 24;

// Keys of one group as panels [positions / PANEL, K, PANEL], then its values as [K / PANEL, positions, PANEL]; zeros beyond both.
struct Panels {
    float *keys, *values;
};

int64_t whole_panels(int64_t size) { return (size + baseline::PANEL - 1) / baseline::PANEL * baseline::PANEL; }

int64_t group_room(int64_t positions, int64_t K) { return whole_panels(positions) * K + positions * whole_panels(K); }

float* scratch(int64_t size) {
    static thread_local std::vector<float> numbers;
    if (static_cast<int64_t>(numbers.size()) < size) numbers.resize(static_cast<size_t>(size));
    return numbers.data();
}

}  // namespace

bool attends() { return level() >= AVX2; }

int64_t attention_room(int64_t positions, int64_t G, int64_t K) { return G * group_room(positions, K); }

template <typename T>
void packed_attention(Heads<T> qkv, Rows<const float> cos, Rows<const float> sin, const int64_t* lengths, int64_t B, int64_t positions,
                      int64_t H, int64_t G, int64_t K, float* room, T* y, int threads) {
    const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(K));
    const int64_t shared = H / G, stacked = shared * positions, width = whole_panels(positions), K_room = whole_panels(K);
    const auto head = [&](int64_t b, int64_t t, int64_t h) {
        return qkv.data + b * qkv.stride_batch + t * qkv.stride_position + h * qkv.stride_head;
    };
    const auto panels = [&](int64_t pair) {
        float* keys = room + pair * group_room(positions, K);
        return Panels{keys, keys + width * K};
    };
    const int64_t key_parts = width / baseline::PANEL;
    parallel_for(B * G * key_parts, threads, [&](int64_t task) {
        const int64_t pair = task / key_parts, b = pair / G, g = pair % G, first = task % key_parts * baseline::PANEL;
        const Panels to = panels(pair);
        float *row = scratch(K_room), *keys = to.keys + first * K;
        // What nobody reads is multiplied all the same, and leftovers of another use may be numbers that are slow to multiply.
        std::fill(row + K, row + K_room, 0.0f);
        if (positions - first < baseline::PANEL) std::fill_n(keys, K * baseline::PANEL, 0.0f);
        for (int64_t t = first; t < std::min(positions, first + baseline::PANEL); ++t) {
            LAD_AT_LEVEL(rotate_head<T, float>)(head(b, t, H + g), cos[t], sin[t], K / 2, 1.0f, row);
            for (int64_t k = 0; k < K; ++k) keys[k * baseline::PANEL + t - first] = row[k];
            LAD_AT_LEVEL(convert_row<T, float>)(head(b, t, H + G + g), K, row);
            for (int64_t k = 0; k < K; k += baseline::PANEL)
                std::copy_n(row + k, baseline::PANEL, to.values + k * positions + t * baseline::PANEL);
        }
    });
    const int64_t blocks = (stacked + BLOCK_ROWS - 1) / BLOCK_ROWS;
    parallel_for(B * G * blocks, threads, [&](int64_t task) {
        const int64_t pair = task / blocks, b = pair / G, g = pair % G, first = task % blocks * BLOCK_ROWS;
        const int64_t rows = std::min(stacked - first, BLOCK_ROWS), keys = lengths ? std::min(lengths[b], positions) : positions;
        const Panels from = panels(pair);
        float *queries = scratch(BLOCK_ROWS * (K + width + K_room)), *scores = queries + BLOCK_ROWS * K, *found = scores + BLOCK_ROWS * width;
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t h = g * shared + (first + i) / positions, t = (first + i) % positions;
            LAD_AT_LEVEL(rotate_head<T, float>)(head(b, t, h), cos[t], sin[t], K / 2, factor, queries + i * K);
        }
        float inverse[BLOCK_ROWS];
        LAD_AT_LEVEL(attend)(queries, rows, K, from.keys, from.values, positions, keys, scores, width, inverse, found, K_room);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t h = g * shared + (first + i) / positions, t = (first + i) % positions;
            LAD_AT_LEVEL(scaled_row<T>)(found + i * K_room, inverse[i], K, y + ((b * positions + t) * H + h) * K);
        }
    });
}

#define LAD_FOR(T)                                                                                                                      \
    template void packed_attention(Heads<T>, Rows<const float>, Rows<const float>, const int64_t*, int64_t, int64_t, int64_t, int64_t, \
                                   int64_t, float*, T*, int);

LAD_FOR(float)
LAD_FOR(uint16_t)

}  // namespace lad
