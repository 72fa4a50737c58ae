#include "soft_scores.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "levels.h"
#include "parallel.h"

#define LAD_BODY "soft_scores_body.h"
#include "each_level.h"

namespace lad {

namespace {

// Numbers of one call of noise_block, and of the calls of the generator in it.
constexpr int64_t BLOCK = 64, GROUPS = 16;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

int64_t padded(int64_t count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }

void draw(const NoiseKeys& keys, int64_t row, float spread, int64_t count, float* out) {
    const auto noise_block = LAD_AT_LEVEL(noise_block);
    for (int64_t first = 0; first < count; first += BLOCK)
        noise_block(keys.seeds[row], keys.positions[row], keys.steps[row], keys.purpose, first / BLOCK * GROUPS, spread, out + first);
}

// exp(x - its largest) over a row padded with -inf; returns the sum.
double weigh_row(float* x, int64_t count) { return LAD_AT_LEVEL(weigh)(x, count, LAD_AT_LEVEL(largest_in)(x, count)); }

template <typename T>
void widen_row(const T* from, int64_t V, float* x) {
    if constexpr (std::is_same_v<T, float>) {
        std::memcpy(x, from, static_cast<size_t>(V) * sizeof(float));
    } else {
        const int64_t whole = V / 16 * 16;
        LAD_AT_LEVEL(widen)(from, whole, x);
        for (int64_t i = whole; i < V; ++i) {
            const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
            std::memcpy(x + i, &bits, sizeof bits);
        }
    }
}

}  // namespace

void gaussian_noise(const NoiseKeys& keys, int64_t N, int64_t V, Rows<float> out, int threads) {
    parallel_for(N, threads, [&](int64_t row) {
        const int64_t whole = V / BLOCK * BLOCK;
        draw(keys, row, 1.0f, whole, out[row]);
        if (whole == V) return;
        alignas(64) float last[BLOCK];
        LAD_AT_LEVEL(noise_block)(
            keys.seeds[row], keys.positions[row], keys.steps[row], keys.purpose, whole / BLOCK * GROUPS, 1.0f, last);
        std::memcpy(out[row] + whole, last, static_cast<size_t>(V - whole) * sizeof(float));
    });
}

template <typename T>
void soft_probabilities(const SoftTokens& soft, const NoiseKeys& keys, Rows<const T> previous, Rows<const float> noise, int64_t N, int64_t V,
                        Rows<float> out, int threads) {
    const int64_t whole = padded(V);
    parallel_for(N, threads, [&](int64_t row) {
        std::vector<float> x(static_cast<size_t>(whole), NOTHING), old;
        const float spread = soft.spread[row];
        if (noise.data == nullptr)
            draw(keys, row, spread, whole, x.data());
        else
            for (int64_t v = 0; v < V; ++v) x[static_cast<size_t>(v)] = noise[row][v] * spread;
        std::fill(x.begin() + V, x.end(), NOTHING);
        const int64_t token = soft.tokens[row];
        if (token >= 0) x[static_cast<size_t>(token)] += soft.shift[row];
        const double mass = weigh_row(x.data(), whole);
        double old_mass = 1.0;
        if (previous.data != nullptr) {
            old.assign(static_cast<size_t>(whole), NOTHING);
            widen_row(previous[row], V, old.data());
            old_mass = weigh_row(old.data(), whole);
        }
        const double half = previous.data == nullptr ? 1.0 : 0.5;
        LAD_AT_LEVEL(average)(
            x.data(), old.empty() ? nullptr : old.data(), whole, static_cast<float>(half / mass), static_cast<float>(half / old_mass));
        std::memcpy(out[row], x.data(), static_cast<size_t>(V) * sizeof(float));
    });
}

template void soft_probabilities(const SoftTokens&, const NoiseKeys&, Rows<const float>, Rows<const float>, int64_t, int64_t, Rows<float>, int);
template void soft_probabilities(
    const SoftTokens&, const NoiseKeys&, Rows<const uint16_t>, Rows<const float>, int64_t, int64_t, Rows<float>, int);

}  // namespace lad
