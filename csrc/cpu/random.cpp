#include "ops.h"
#include "philox.h"

namespace lad {

void uniform(const int64_t* seeds, int64_t stride_seeds, const int64_t* positions, int64_t stride_positions, float* out, int64_t B,
             int64_t R, const int64_t* steps, int64_t stride_steps, int64_t purpose) {
    for (int64_t b = 0; b < B; ++b)
        for (int64_t r = 0; r < R; ++r)
            out[b * R + r] = uniform_at(seeds[b * stride_seeds], positions[r * stride_positions], steps[b * stride_steps], purpose);
}

}  // namespace lad
