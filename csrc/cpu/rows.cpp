#include "rows.h"

#include <algorithm>
#include <vector>

#include "levels.h"
#include "parallel.h"

#define LAD_BODY "rows_body.h"
#include "each_level.h"

namespace lad {

namespace {

// Rows one thread takes at a time: enough work to be worth a hand-over.
constexpr int64_t ROWS_PER_TASK = 8;
constexpr float LIMIT = 127.0f, LEAST_AMAX = 5.42101086e-20f;

// The arithmetic of kernels/quantise_rows/reference.py.
void quantise(const float* y, int64_t D, float largest, int8_t* q, float* scale) {
    largest = std::max(largest, LEAST_AMAX);
    LAD_AT_LEVEL(quantise_row)(y, D, (1.0f / largest) * LIMIT, q);
    *scale = largest * static_cast<float>(1.0 / 127.0);
}

// A row in fp32; every thread keeps its own.
float* scratch(int64_t D) {
    static thread_local std::vector<float> row;
    if (static_cast<int64_t>(row.size()) < D) row.resize(static_cast<size_t>(D));
    return row.data();
}

template <typename Body>
void for_rows(int64_t N, int threads, const Body& body) {
    parallel_for((N + ROWS_PER_TASK - 1) / ROWS_PER_TASK, threads, [&](int64_t task) {
        for (int64_t n = task * ROWS_PER_TASK; n < std::min(N, (task + 1) * ROWS_PER_TASK); ++n) body(n);
    });
}

}  // namespace

template <typename T>
void add_rmsnorm(
    const T* x, const T* residual, const T* weight, float eps, int64_t N, int64_t D, T* h, T* y, Quantised narrow, int threads) {
    for_rows(N, threads, [&](int64_t n) {
        const T *from = x + n * D, *added = residual ? residual + n * D : nullptr;
        T* sum = residual ? h + n * D : nullptr;
        if (!narrow.values) {
            LAD_AT_LEVEL(norm_row<T, T>)(from, added, weight, eps, D, sum, y + n * D);
            return;
        }
        float* row = scratch(D);
        const float largest = LAD_AT_LEVEL(norm_row<T, float>)(from, added, weight, eps, D, sum, row);
        quantise(row, D, largest, narrow.values + n * D, narrow.scale + n);
    });
}

template <typename T>
void swiglu(Rows<const T> gate_up, int64_t N, int64_t F, T* y, Quantised narrow, int threads) {
    for_rows(N, threads, [&](int64_t n) {
        const T *gate = gate_up[n], *up = gate + F;
        if (!narrow.values) {
            LAD_AT_LEVEL(gated_row<T, T>)(gate, up, F, y + n * F);
            return;
        }
        float* row = scratch(F);
        const float largest = LAD_AT_LEVEL(gated_row<T, float>)(gate, up, F, row);
        quantise(row, F, largest, narrow.values + n * F, narrow.scale + n);
    });
}

template <typename T>
void quantise_rows(Rows<const T> x, int64_t N, int64_t D, Quantised narrow, int threads) {
    for_rows(N, threads, [&](int64_t n) {
        float* row = scratch(D);
        quantise(row, D, LAD_AT_LEVEL(largest_magnitude<T>)(x[n], D, row), narrow.values + n * D, narrow.scale + n);
    });
}

template <typename T>
void dequantise(
    const int32_t* sums, const float* row_scale, const float* scale, const float* bias, int64_t N, int64_t O, Rows<T> y, int threads) {
    for_rows(N, threads, [&](int64_t n) { LAD_AT_LEVEL(dequantise_row<T>)(sums + n * O, row_scale[n], scale, bias, O, y[n]); });
}

template <typename T, typename U>
void rotate_and_stack(Heads<T> qkv, Rows<const float> cos, Rows<const float> sin, int64_t B, int64_t positions, int64_t H, int64_t G,
                      int64_t K, U* q, U* k, U* v, int threads) {
    const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(K));
    for_rows(B * positions, threads, [&](int64_t n) {
        const int64_t b = n / positions, t = n % positions;
        const T* from = qkv.data + b * qkv.stride_batch + t * qkv.stride_position;
        for (int64_t head = 0; head < H + G; ++head) {
            U* to = head < H ? q + ((b * H + head) * positions + t) * K : k + ((b * G + head - H) * positions + t) * K;
            LAD_AT_LEVEL(rotate_head<T, U>)(from + head * qkv.stride_head, cos[t], sin[t], K / 2, head < H ? factor : 1.0f, to);
        }
        for (int64_t g = 0; g < G; ++g)
            LAD_AT_LEVEL(convert_row<T, U>)(from + (H + G + g) * qkv.stride_head, K, v + ((b * G + g) * positions + t) * K);
    });
}

template <typename T>
void softmax_rows(T* x, const int64_t* lengths, int64_t rows_per_sequence, int64_t N, int64_t S, int threads) {
    for_rows(N, threads, [&](int64_t n) {
        const int64_t count = lengths ? std::min(lengths[n / rows_per_sequence], S) : S;
        LAD_AT_LEVEL(softmax_row<T>)(x + n * S, count, S);
    });
}

template <typename T, typename U>
void unstack(const U* x, int64_t B, int64_t positions, int64_t H, int64_t K, T* y, int threads) {
    for_rows(B * positions, threads, [&](int64_t n) {
        const int64_t b = n / positions, t = n % positions;
        for (int64_t head = 0; head < H; ++head)
            LAD_AT_LEVEL(convert_row<U, T>)(x + ((b * H + head) * positions + t) * K, K, y + (n * H + head) * K);
    });
}

template <typename T, typename U>
void convert(Rows<const T> x, int64_t N, int64_t D, Rows<U> y, int threads) {
    for_rows(N, threads, [&](int64_t n) { LAD_AT_LEVEL(convert_row<T, U>)(x[n], D, y[n]); });
}

#define LAD_FOR(T)                                                                                                        \
    template void add_rmsnorm(const T*, const T*, const T*, float, int64_t, int64_t, T*, T*, Quantised, int);              \
    template void swiglu(Rows<const T>, int64_t, int64_t, T*, Quantised, int);                                             \
    template void quantise_rows(Rows<const T>, int64_t, int64_t, Quantised, int);                                          \
    template void dequantise(const int32_t*, const float*, const float*, const float*, int64_t, int64_t, Rows<T>, int);    \
    template void softmax_rows(T*, const int64_t*, int64_t, int64_t, int64_t, int);

#define LAD_BETWEEN(T, U)                                                                                                            \
    template void rotate_and_stack(Heads<T>, Rows<const float>, Rows<const float>, int64_t, int64_t, int64_t, int64_t, int64_t, U*, \
                                   U*, U*, int);                                                                                     \
    template void unstack(const U*, int64_t, int64_t, int64_t, int64_t, T*, int);

LAD_FOR(float)
LAD_FOR(uint16_t)
LAD_BETWEEN(float, float)
LAD_BETWEEN(uint16_t, float)
LAD_BETWEEN(uint16_t, uint16_t)
template void convert(Rows<const uint16_t>, int64_t, int64_t, Rows<float>, int);
template void convert(Rows<const float>, int64_t, int64_t, Rows<uint16_t>, int);

}  // namespace lad
