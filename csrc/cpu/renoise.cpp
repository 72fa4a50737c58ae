#include "draw.h"
#include "ops.h"

namespace lad {

void renoise(Rows<const int64_t> tokens, Rows<const bool> eligible, Rows<const float> weight, Column<int64_t> count, Column<int64_t> seeds,
             int64_t* out, int64_t B, int64_t R, int64_t step, int64_t mask_id, int64_t purpose) {
    std::vector<Draw> draws;
    draws.reserve(static_cast<size_t>(R));
    for (int64_t b = 0; b < B; ++b) {
        int64_t* row = out + b * R;
        std::copy_n(tokens[b], R, row);
        draws.clear();
        for (int64_t r = 0; r < R; ++r)
            if (eligible[b][r]) draws.push_back({draw_key(weight[b][r], seeds[b], r, step, purpose), r});
        const int64_t drawn = draw_first(draws, count[b]);
        for (int64_t i = 0; i < drawn; ++i) row[draws[static_cast<size_t>(i)].index] = mask_id;
    }
}

}  // namespace lad
