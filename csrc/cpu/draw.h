// Draws without replacement, shared by renoise and update.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "philox.h"

namespace lad {

struct Draw {
    double key;
    int64_t index;
};

// The larger key is drawn first, and of equal keys the one with the lower index.
inline bool is_drawn_before(const Draw& a, const Draw& b) { return a.key > b.key || (a.key == b.key && a.index < b.index); }

// Key of one position (kernels/renoise/reference.py): the largest keys are drawn, in proportion to their weights.
inline double draw_key(float weight, int64_t seed, int64_t index, int64_t step, int64_t purpose) {
    constexpr float SMALLEST_WEIGHT = 1.17549435e-38f;
    const double u = static_cast<double>(uniform_at(seed, index, step, purpose));
    return std::log(u) / static_cast<double>(std::max(weight, SMALLEST_WEIGHT));
}

// Move the min(count, size) draws that come first to the front; returns how many.
inline int64_t draw_first(std::vector<Draw>& draws, int64_t count) {
    const int64_t size = static_cast<int64_t>(draws.size()), drawn = std::clamp<int64_t>(count, 0, size);
    if (drawn > 0 && drawn < size) std::nth_element(draws.begin(), draws.begin() + drawn, draws.end(), is_drawn_before);
    return drawn;
}

}  // namespace lad
