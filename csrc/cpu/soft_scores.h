// Simplex probabilities, row by row; contracts of kernels/soft_embedding and kernels/gaussian_noise.
#pragma once

#include <cstdint>

#include "views.h"

namespace lad {

// What names the noise of each row.
struct NoiseKeys {
    Column<int64_t> seeds, positions, steps;
    int64_t purpose;
};

// out[n, v]: standard normal numbers.
void gaussian_noise(const NoiseKeys& keys, int64_t N, int64_t V, Rows<float> out, int threads);

// A noised token of every row.
struct SoftTokens {
    Column<int64_t> tokens;
    Column<float> shift, spread;
};

// out[n, v] = p of soft_embedding. T: float, or uint16_t for bfloat16; previous.data and noise.data may be null.
template <typename T>
void soft_probabilities(const SoftTokens& soft, const NoiseKeys& keys, Rows<const T> previous, Rows<const float> noise, int64_t N, int64_t V,
                        Rows<float> out, int threads);

}  // namespace lad
