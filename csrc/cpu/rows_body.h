// The loops of rows.cpp over one row; T is float, or uint16_t for bfloat16. Widths need not be multiples of LANES.
#include "parts_body.h"

// h = x + residual, y = round(h / rms) * weight; `h` is written only where there is a residual. Returns the largest |y|. Y holds T exactly.
template <typename T, typename Y>
static float norm_row(const T* x, const T* residual, const T* weight, float eps, int64_t D, T* h, Y* y) {
    F32 squares{};
    for_lanes(D, LAD_BODY_OF(d, count) {
        F32 wide = load_part(x + d, count);
        if (residual) {
            wide = rounded<T>(wide + load_part(residual + d, count));
            store_part(h + d, wide, count);
        }
        squares += wide * wide;
    });
    const float mean = static_cast<float>(sum_of(squares) / static_cast<double>(D)) + eps;
    const float inverse = 1.0f / __builtin_sqrtf(mean);
    const T* source = residual ? h : x;
    F32 top{};
    for_lanes(D, LAD_BODY_OF(d, count) {
        const F32 value = rounded<T>(rounded<T>(load_part(source + d, count) * inverse) * load_part(weight + d, count));
        top = largest(magnitude(value), top);
        store_part(y + d, value, count);
    });
    return largest_of(top);
}

// y = round(silu(gate)) * up. Returns the largest |y|.
template <typename T, typename Y>
static float gated_row(const T* gate, const T* up, int64_t F, Y* y) {
    F32 top{};
    for_lanes(F, LAD_BODY_OF(f, count) {
        const F32 g = load_part(gate + f, count);
        const F32 value = rounded<T>(rounded<T>(g / (exponential(-g) + 1.0f)) * load_part(up + f, count));
        top = largest(magnitude(value), top);
        store_part(y + f, value, count);
    });
    return largest_of(top);
}

template <typename T>
static float largest_magnitude(const T* x, int64_t D, float* wide) {
    F32 top{};
    for_lanes(D, LAD_BODY_OF(d, count) {
        const F32 value = load_part(x + d, count);
        top = largest(magnitude(value), top);
        store_part(wide + d, value, count);
    });
    return largest_of(top);
}

// q = round(y * factor), within the range of int8 by the choice of the factor.
static void quantise_row(const float* y, int64_t D, float factor, int8_t* q) {
    for_lanes(D, LAD_BODY_OF(d, count) {
        store_part(q + d, to_whole(whole(load_part(y + d, count) * factor)), count);
    });
}

// In place: softmax of the first `count` scores, zeros behind them up to `width`.
template <typename T>
static void softmax_row(T* x, int64_t count, int64_t width) {
    F32 tops = all(-__builtin_inff());
    const int64_t groups = count / LANES * LANES;
    for (int64_t i = 0; i < groups; i += LANES) tops = largest(load(x + i), tops);
    F32 rest = all(-__builtin_inff());
    if (groups < count) {
        float wide[LANES];
        store(wide, load_part(x + groups, count - groups));
        rest = load_filled(wide, count - groups, -__builtin_inff());
    }
    const float top = largest_of(largest(rest, tops));
    F32 sums{};
    for (int64_t i = 0; i < groups; i += LANES) {
        const F32 weight = exponential(load(x + i) - top);
        sums += weight;
        store(x + i, weight);
    }
    const F32 last = exponential(rest - top);
    const float inverse = static_cast<float>(1.0 / (sum_of(sums) + sum_of(last)));
    for (int64_t i = 0; i < groups; i += LANES) store(x + i, load(x + i) * inverse);
    store_part(x + groups, last * inverse, count - groups);
    for (int64_t i = count; i < width; ++i) x[i] = 0;
}
