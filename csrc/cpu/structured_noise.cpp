#include <algorithm>
#include <vector>

#include "ops.h"
#include "parallel.h"
#include "philox.h"

namespace lad {

namespace {

// Purposes of kernels/random/reference.py.
constexpr int64_t LEVEL = 16, MASK = 17, SWAP = 18, DUPLICATE = 19, SPAN = 20;
constexpr float LOWEST_LEVEL = 0.001f, ABOVE_LOWEST = 0.999f, WHOLE_MASK_PROBABILITY = 0.1f;
constexpr int64_t MAX_SPAN = 3, MAX_SHIFT = 4;

struct Levels {
    float mask, rate;
};

Levels levels_of(NoiseVariant variant, float fixed_level, int64_t A, int64_t seed, int64_t step) {
    const auto u = [&](int64_t slot) { return uniform_at(seed, slot, step, LEVEL); };
    const float whole = u(0), fraction = u(2), rate = u(3);
    const bool is_masking = u(1) < 0.5f;
    if (fixed_level >= 0) return {fixed_level, variant == NoiseVariant::mask_only ? 0.0f : 0.25f * 0.25f};
    if (variant == NoiseVariant::paper) return {is_masking ? fraction : 0.0f, rate * 0.5f * 0.25f};
    if (variant == NoiseVariant::code) {
        const bool is_whole = whole < WHOLE_MASK_PROBABILITY;
        return {is_whole ? 1.0f : is_masking ? fraction * 0.5f : 0.0f, is_whole || A <= 2 ? 0.0f : rate * 0.25f};
    }
    return {fraction * ABOVE_LOWEST + LOWEST_LEVEL, variant == NoiseVariant::mixed ? rate * 0.5f * 0.25f : 0.0f};
}

void swap(std::vector<int64_t>& tokens, float rate, int64_t seed, int64_t step) {
    for (size_t i = 0; i + 1 < tokens.size(); ++i)
        if (uniform_at(seed, static_cast<int64_t>(i), step, SWAP) < rate) std::swap(tokens[i], tokens[i + 1]);
}

void duplicate(std::vector<int64_t>& tokens, float rate, int64_t seed, int64_t step) {
    const int64_t last = static_cast<int64_t>(tokens.size()) - 1;
    std::vector<bool> from_right(tokens.size());
    int64_t before = 0;
    for (int64_t i = 0; i <= last; ++i) {
        const float u = uniform_at(seed, i, step, DUPLICATE);
        const int64_t own = tokens[static_cast<size_t>(i)];
        const bool is_hit = u < rate, from_left = is_hit && i >= 1 && (u < rate * 0.5f || i == last);
        if (from_left) tokens[static_cast<size_t>(i)] = before;
        from_right[static_cast<size_t>(i)] = is_hit && !from_left && i < last;
        before = own;
    }
    // Ascending order: what stands to the right has not been overwritten by this pass yet.
    for (size_t i = 0; i + 1 < tokens.size(); ++i)
        if (from_right[i]) tokens[i] = tokens[i + 1];
}

void copy_span(std::vector<int64_t>& tokens, float rate, int64_t seed, int64_t step) {
    const int64_t A = static_cast<int64_t>(tokens.size());
    const auto u = [&](int64_t slot) { return uniform_at(seed, slot, step, SPAN); };
    if (!(u(0) < rate)) return;
    // A draw just below 1 may round up in the product, hence the caps.
    const int64_t count = std::min(std::min(1 + static_cast<int64_t>(u(1) * static_cast<float>(MAX_SPAN)), MAX_SPAN), A);
    const int64_t start = std::min(static_cast<int64_t>(u(2) * static_cast<float>(A - count + 1)), A - count);
    int64_t shift = std::min(static_cast<int64_t>(u(3) * static_cast<float>(2 * MAX_SHIFT)), 2 * MAX_SHIFT - 1) - MAX_SHIFT;
    shift += shift >= 0;
    int64_t span[MAX_SPAN];
    std::copy_n(tokens.begin() + start, count, span);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t target = start + shift + i;
        if (target >= 0 && target < A) tokens[static_cast<size_t>(target)] = span[i];
    }
}

}  // namespace

void structured_noise(Rows<const int64_t> ids, Column<int64_t> answer_start, Column<int64_t> lengths, Column<int64_t> seeds, int64_t B,
                      int64_t T, int64_t step, int64_t mask_id, NoiseVariant variant, float fixed_level, int64_t* out, float* level,
                      int threads) {
    parallel_for(B, threads, [&](int64_t b) {
        int64_t* row = out + b * T;
        std::copy_n(ids[b], T, row);
        const int64_t start = std::clamp<int64_t>(answer_start[b], 0, T), A = std::clamp<int64_t>(lengths[b] - start, 0, T - start);
        const int64_t seed = seeds[b];
        const Levels at = levels_of(variant, fixed_level, A, seed, step);
        level[b] = at.mask;
        std::vector<int64_t> tokens(row + start, row + start + A);
        if (tokens.empty()) return;
        for (int64_t i = 0; i < A; ++i)
            if (uniform_at(seed, i, step, MASK) < at.mask) tokens[static_cast<size_t>(i)] = mask_id;
        if (variant != NoiseVariant::mask_only) {
            swap(tokens, at.rate, seed, step);
            duplicate(tokens, at.rate, seed, step);
            copy_span(tokens, at.rate, seed, step);
        }
        std::copy(tokens.begin(), tokens.end(), row + start);
    });
}

}  // namespace lad
