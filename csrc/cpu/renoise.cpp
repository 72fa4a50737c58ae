#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"
#include "philox.h"

namespace lad {

namespace {

struct Draw {
    double key;
    int64_t index;
};

// The larger key is drawn first, and of equal keys the one with the lower index.
bool is_drawn_before(const Draw& a, const Draw& b) { return a.key > b.key || (a.key == b.key && a.index < b.index); }

constexpr float SMALLEST_WEIGHT = 1.17549435e-38f;

}  // namespace

void renoise(Rows<int64_t> tokens, Rows<bool> eligible, Rows<float> weight, Rows<int64_t> count, Rows<int64_t> seeds, int64_t* out,
             int64_t B, int64_t R, int64_t step, int64_t mask_id, int64_t purpose) {
    std::vector<Draw> draws;
    draws.reserve(static_cast<size_t>(R));
    for (int64_t b = 0; b < B; ++b) {
        int64_t* row = out + b * R;
        std::copy_n(tokens[b], R, row);
        draws.clear();
        for (int64_t r = 0; r < R; ++r) {
            if (!eligible[b][r]) continue;
            const double u = uniform_at(*seeds[b], r, step, purpose);
            draws.push_back({std::log(u) / static_cast<double>(std::max(weight[b][r], SMALLEST_WEIGHT)), r});
        }
        const int64_t drawn = std::clamp<int64_t>(*count[b], 0, static_cast<int64_t>(draws.size()));
        if (drawn < static_cast<int64_t>(draws.size()))
            std::nth_element(draws.begin(), draws.begin() + drawn, draws.end(), is_drawn_before);
        for (int64_t i = 0; i < drawn; ++i) row[draws[static_cast<size_t>(i)].index] = mask_id;
    }
}

}  // namespace lad
