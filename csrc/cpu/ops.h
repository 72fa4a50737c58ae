// Every CPU op of the extension: raw pointers and sizes, contracts checked by the caller (bindings_cpu.cpp).
#pragma once

#include <cstdint>

namespace lad {

// out[b, r] = uniform(seeds[b], positions[r], steps[b], purpose); out is contiguous, a stride of 0 repeats one step.
void uniform(const int64_t* seeds, int64_t stride_seeds, const int64_t* positions, int64_t stride_positions, float* out, int64_t B,
             int64_t R, const int64_t* steps, int64_t stride_steps, int64_t purpose);

// One matrix argument: its first element and the distance between rows; the last axis is contiguous.
template <typename T>
struct Rows {
    const T* data;
    int64_t stride;
    const T* operator[](int64_t row) const { return data + row * stride; }
};

// Contract of kernels/renoise/reference.py; out is contiguous.
void renoise(Rows<int64_t> tokens, Rows<bool> eligible, Rows<float> weight, Rows<int64_t> count, Rows<int64_t> seeds, int64_t* out,
             int64_t B, int64_t R, int64_t step, int64_t mask_id, int64_t purpose);

}  // namespace lad
