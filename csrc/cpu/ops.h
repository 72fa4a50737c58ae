// The ops on ids and random numbers: raw pointers and sizes, contracts checked by the caller (bindings_*.cpp).
#pragma once

#include <cstdint>

#include "views.h"

namespace lad {

// out[b, r] = uniform(seeds[b], positions[r], steps[b], purpose); out is contiguous.
void uniform(Column<int64_t> seeds, Column<int64_t> positions, float* out, int64_t B, int64_t R, Column<int64_t> steps, int64_t purpose);

// Contract of kernels/renoise/reference.py; out is contiguous.
void renoise(Rows<const int64_t> tokens, Rows<const bool> eligible, Rows<const float> weight, Column<int64_t> count, Column<int64_t> seeds,
             int64_t* out, int64_t B, int64_t R, int64_t step, int64_t mask_id, int64_t purpose);

enum class NoiseVariant { paper, code, mask_only, mixed };

// Contract of kernels/structured_noise/reference.py; out and level are contiguous, fixed_level below 0 draws one per row.
void structured_noise(Rows<const int64_t> ids, Column<int64_t> answer_start, Column<int64_t> lengths, Column<int64_t> seeds, int64_t B,
                      int64_t T, int64_t step, int64_t mask_id, NoiseVariant variant, float fixed_level, int64_t* out, float* level,
                      int threads);

}  // namespace lad
