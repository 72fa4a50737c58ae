// The whole of kernels/quantised_linear for int8 rows: exact sums, scaled and rounded while they are in registers and the first-level cache.
#pragma once

#include <cstdint>

#include "views.h"

namespace lad {

// Whether the level in use sums byte products by itself; elsewhere the library's kernels are the better ones.
bool multiplies_bytes();

// The widest row whose sums stay within int32.
constexpr int64_t MOST_INPUTS = 65536;

// x: N rows of D; weight: O rows of D; bias: [O] fp32 or null; y: N rows of O, float or uint16_t for bfloat16. Only where multiplies_bytes().
template <typename T>
void quantised_linear(Rows<const int8_t> x, const float* row_scale, Rows<const int8_t> weight, const float* scale, const float* bias,
                      int64_t N, int64_t O, int64_t D, Rows<T> y, int threads);

}  // namespace lad
