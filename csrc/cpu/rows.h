// What surrounds the matrix products of a layer, row by row; contracts of the references named. T: float, or uint16_t for bfloat16.
#pragma once

#include <cstdint>

#include "views.h"

namespace lad {

// A row quantised to int8 and its scale (kernels/quantise_rows).
struct Quantised {
    int8_t* values;
    float* scale;
};

// kernels/add_rmsnorm, and rmsnorm_quantise where `narrow.values` is given instead of y. x, residual (or null), h, y: contiguous [N, D].
template <typename T>
void add_rmsnorm(const T* x, const T* residual, const T* weight, float eps, int64_t N, int64_t D, T* h, T* y, Quantised narrow, int threads);

// kernels/swiglu, and swiglu_quantise where `narrow.values` is given instead of y. gate_up: [N, 2F] rows.
template <typename T>
void swiglu(Rows<const T> gate_up, int64_t N, int64_t F, T* y, Quantised narrow, int threads);

// kernels/quantise_rows to int8.
template <typename T>
void quantise_rows(Rows<const T> x, int64_t N, int64_t D, Quantised narrow, int threads);

// The epilogue of kernels/quantised_linear: sums [N, O] contiguous, y rows; bias: [O] fp32 or null.
template <typename T>
void dequantise(
    const int32_t* sums, const float* row_scale, const float* scale, const float* bias, int64_t N, int64_t O, Rows<T> y, int threads);

// A packed projection [B, T, H + 2 G, K], its last axis contiguous.
template <typename T>
struct Heads {
    const T* data;
    int64_t stride_batch, stride_position, stride_head;
};

// kernels/rotary, and the layout of attention by matrix products: q [B, G, H/G, T, K] times 1/sqrt(K), k and v [B, G, T, K], rounded
// to T and stored as U. cos, sin: [T, K/2].
template <typename T, typename U>
void rotate_and_stack(Heads<T> qkv, Rows<const float> cos, Rows<const float> sin, int64_t B, int64_t positions, int64_t H, int64_t G,
                      int64_t K, U* q, U* k, U* v, int threads);

// In place over [N, S]: softmax of the first lengths[n / rows_per_sequence] scores of row n, zeros behind; lengths may be null.
template <typename T>
void softmax_rows(T* x, const int64_t* lengths, int64_t rows_per_sequence, int64_t N, int64_t S, int threads);

// [B, G, H/G, T, K] to [B, T, H, K], rounded to T.
template <typename T, typename U>
void unstack(const U* x, int64_t B, int64_t positions, int64_t H, int64_t K, T* y, int threads);

// y = x in the other dtype, rows of D.
template <typename T, typename U>
void convert(Rows<const T> x, int64_t N, int64_t D, Rows<U> y, int threads);

}  // namespace lad
