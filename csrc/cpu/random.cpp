#include "ops.h"
#include "philox.h"

namespace lad {

void uniform(Column<int64_t> seeds, Column<int64_t> positions, float* out, int64_t B, int64_t R, Column<int64_t> steps, int64_t purpose) {
    for (int64_t b = 0; b < B; ++b)
        for (int64_t r = 0; r < R; ++r) out[b * R + r] = uniform_at(seeds[b], positions[r], steps[b], purpose);
}

}  // namespace lad
