// What surrounds the matrix products of a layer.
#include "bindings.h"
#include "cpu/attention.h"
#include "cpu/int8_product.h"
#include "cpu/rows.h"
#include "tensor_view.h"

namespace lad {

namespace {

// Call body(T()) with the element type of the view.
template <typename Body>
void by_dtype(const TensorView& view, const Body& body) {
    const bool is_bfloat16 = view.expect_bfloat16_or_float32();
    py::gil_scoped_release released;
    if (is_bfloat16)
        body(uint16_t());
    else
        body(float());
}

Quantised quantised(const char* op, const py::object& values, const py::object& scale, int64_t N, int64_t D) {
    return {TensorView(values, op, "values").expect_contiguous(Dtype::int8, {N, D}).data<int8_t>(),
            TensorView(scale, op, "scale").expect_contiguous(Dtype::float32, {N}).data<float>()};
}

// x, residual (or None) and h: [N, D]; y: [N, D], or None with values and scale.
void add_rmsnorm_of(const py::object& x, const py::object& residual, const py::object& weight, float eps, const py::object& h,
                    const py::object& y, const py::object& values, const py::object& scale, int threads) {
    const char* op = y.is_none() ? "rmsnorm_quantise" : "add_rmsnorm";
    const TensorView from(x, op, "x"), w(weight, op, "weight");
    from.expect_dims(2);
    const int64_t N = from.size(0), D = from.size(1);
    from.expect_contiguous(from.dtype(), {N, D});
    w.expect_contiguous(from.dtype(), {D});
    const auto same = [&](const py::object& tensor, const char* name) -> void* {
        return tensor.is_none() ? nullptr : TensorView(tensor, op, name).expect_contiguous(from.dtype(), {N, D}).data<void>();
    };
    const void* added = same(residual, "residual");
    void *sum = same(h, "h"), *out = same(y, "y");
    const Quantised narrow = y.is_none() ? quantised(op, values, scale, N, D) : Quantised{};
    by_dtype(from, [&](auto element) {
        using T = decltype(element);
        add_rmsnorm(from.data<const T>(), static_cast<const T*>(added), w.data<const T>(), eps, N, D, static_cast<T*>(sum),
                    static_cast<T*>(out), narrow, threads);
    });
}

// gate_up: [N, 2F]; y: [N, F], or None with values and scale.
void swiglu_of(const py::object& gate_up, const py::object& y, const py::object& values, const py::object& scale, int threads) {
    const char* op = y.is_none() ? "swiglu_quantise" : "swiglu";
    const TensorView from(gate_up, op, "gate_up");
    from.expect_dims(2);
    const int64_t N = from.size(0), F = from.size(1) / 2;
    from.expect(from.dtype(), {N, 2 * F});
    void* out = y.is_none() ? nullptr : TensorView(y, op, "y").expect_contiguous(from.dtype(), {N, F}).data<void>();
    const Quantised narrow = y.is_none() ? quantised(op, values, scale, N, F) : Quantised{};
    by_dtype(from, [&](auto element) {
        using T = decltype(element);
        swiglu(from.rows<const T>(), N, F, static_cast<T*>(out), narrow, threads);
    });
}

void quantise_rows_of(const py::object& x, const py::object& values, const py::object& scale, int threads) {
    const TensorView from(x, "quantise_rows", "x");
    from.expect_dims(2);
    const int64_t N = from.size(0), D = from.size(1);
    from.expect(from.dtype(), {N, D});
    const Quantised narrow = quantised("quantise_rows", values, scale, N, D);
    by_dtype(from, [&](auto element) {
        using T = decltype(element);
        quantise_rows(from.rows<const T>(), N, D, narrow, threads);
    });
}

// sums: [N, O] int32; bias: [O] fp32 or None; y: [N, O] of the dtype wanted.
void dequantise_of(const py::object& sums, const py::object& row_scale, const py::object& scale, const py::object& bias, const py::object& y,
                   int threads) {
    constexpr const char* OP = "quantised_linear";
    const TensorView from(sums, OP, "sums"), to(y, OP, "y");
    from.expect_dims(2);
    const int64_t N = from.size(0), O = from.size(1);
    from.expect_contiguous(Dtype::int32, {N, O});
    const float* rows = TensorView(row_scale, OP, "x_scale").expect_contiguous(Dtype::float32, {N}).data<float>();
    const float* columns = TensorView(scale, OP, "weight_scale").expect_contiguous(Dtype::float32, {O}).data<float>();
    const float* added = bias.is_none() ? nullptr : TensorView(bias, OP, "bias").expect_contiguous(Dtype::float32, {O}).data<float>();
    to.expect(to.dtype(), {N, O});
    by_dtype(to, [&](auto element) {
        using T = decltype(element);
        dequantise(from.data<int32_t>(), rows, columns, added, N, O, to.rows<T>(), threads);
    });
}

// x: [N, D], weight: [O, D] int8; bias: [O] fp32 or None; y: [N, O] of the dtype wanted.
void quantised_linear_of(const py::object& x, const py::object& row_scale, const py::object& weight, const py::object& scale,
                         const py::object& bias, const py::object& y, int threads) {
    constexpr const char* OP = "quantised_linear";
    const TensorView from(x, OP, "x"), w(weight, OP, "weight"), to(y, OP, "y");
    from.expect_dims(2);
    w.expect_dims(2);
    const int64_t N = from.size(0), D = from.size(1), O = w.size(0);
    from.expect(Dtype::int8, {N, D});
    w.expect(Dtype::int8, {O, D});
    if (D > MOST_INPUTS) from.fail(std::to_string(D) + " wide", "at most " + std::to_string(MOST_INPUTS));
    const float* rows = TensorView(row_scale, OP, "x_scale").expect_contiguous(Dtype::float32, {N}).data<float>();
    const float* columns = TensorView(scale, OP, "weight_scale").expect_contiguous(Dtype::float32, {O}).data<float>();
    const float* added = bias.is_none() ? nullptr : TensorView(bias, OP, "bias").expect_contiguous(Dtype::float32, {O}).data<float>();
    to.expect(to.dtype(), {N, O});
    by_dtype(to, [&](auto element) {
        using T = decltype(element);
        quantised_linear(from.rows<const int8_t>(), rows, w.rows<const int8_t>(), columns, added, N, O, D, to.rows<T>(), threads);
    });
}

// qkv: [B, T, H + 2 G, K]; q, k, v: contiguous, [B, G, H/G * T, K] and twice [B, G, T, K], of its dtype or fp32.
void rotate_and_stack_of(const py::object& qkv, const py::object& cos, const py::object& sin, const py::object& q, const py::object& k,
                         const py::object& v, int threads) {
    constexpr const char* OP = "packed_attention";
    const TensorView from(qkv, OP, "qkv"), keys(k, OP, "k"), queries(q, OP, "q");
    for (const TensorView* view : {&from, &keys, &queries}) view->expect_dims(4);
    const int64_t B = from.size(0), T = from.size(1), K = from.size(3), G = keys.size(1), H = from.size(2) - 2 * G;
    from.expect(from.dtype(), {B, T, H + 2 * G, K});
    queries.expect_contiguous(keys.dtype(), {B, G, H / G * T, K});
    keys.expect_contiguous(keys.dtype(), {B, G, T, K});
    const TensorView values = TensorView(v, OP, "v").expect_contiguous(keys.dtype(), {B, G, T, K});
    const TensorView c = TensorView(cos, OP, "cos").expect(Dtype::float32, {T, K / 2});
    const TensorView s = TensorView(sin, OP, "sin").expect(Dtype::float32, {T, K / 2});
    const bool is_wide = keys.dtype() == Dtype::float32;
    if (!is_wide) keys.expect(from.dtype(), {B, G, T, K});
    by_dtype(from, [&](auto element) {
        using E = decltype(element);
        const Heads<E> heads{from.data<const E>(), from.stride(0), from.stride(1), from.stride(2)};
        const auto rotate = [&](auto to) {
            using U = decltype(to);
            rotate_and_stack(heads, c.rows<const float>(), s.rows<const float>(), B, T, H, G, K, queries.data<U>(), keys.data<U>(),
                             values.data<U>(), threads);
        };
        if (is_wide)
            rotate(float());
        else
            rotate(element);
    });
}

// In place over scores [B, G, H/G * T, S]; lengths: [B] int64 or None.
void softmax_of(const py::object& scores, const py::object& lengths, int threads) {
    constexpr const char* OP = "packed_attention";
    const TensorView x(scores, OP, "scores");
    x.expect_dims(4);
    const int64_t B = x.size(0), each = x.size(1) * x.size(2), S = x.size(3);
    x.expect_contiguous(x.dtype(), {B, x.size(1), x.size(2), S});
    const int64_t* seen =
        lengths.is_none() ? nullptr : TensorView(lengths, OP, "lengths").expect_contiguous(Dtype::int64, {B}).data<int64_t>();
    by_dtype(x, [&](auto element) { softmax_rows(x.data<decltype(element)>(), seen, each, B * each, S, threads); });
}

// x: [B, G, H/G * T, K], y: [B, T, H, K].
void unstack_of(const py::object& x, const py::object& y, int threads) {
    constexpr const char* OP = "packed_attention";
    const TensorView from(x, OP, "x"), to(y, OP, "y");
    from.expect_dims(4);
    to.expect_dims(4);
    const int64_t B = to.size(0), T = to.size(1), H = to.size(2), K = to.size(3), G = from.size(1);
    from.expect_contiguous(from.dtype(), {B, G, H / G * T, K});
    to.expect_contiguous(to.dtype(), {B, T, H, K});
    const bool is_wide = from.dtype() == Dtype::float32;
    if (!is_wide) from.expect(to.dtype(), {B, G, H / G * T, K});
    by_dtype(to, [&](auto element) {
        using E = decltype(element);
        if (is_wide)
            unstack(from.data<const float>(), B, T, H, K, to.data<E>(), threads);
        else
            unstack(from.data<const E>(), B, T, H, K, to.data<E>(), threads);
    });
}

// qkv: [B, T, H + 2 G, K]; lengths: [B] int64 or None; room: fp32, attention_room(T, G, K) numbers for each of B; y: [B, T, H, K].
void packed_attention_of(const py::object& qkv, const py::object& cos, const py::object& sin, const py::object& lengths,
                         const py::object& room, const py::object& y, int threads) {
    constexpr const char* OP = "packed_attention";
    const TensorView from(qkv, OP, "qkv"), to(y, OP, "y"), used(room, OP, "room");
    from.expect_dims(4);
    to.expect_dims(4);
    const int64_t B = from.size(0), T = from.size(1), K = from.size(3), H = to.size(2), G = (from.size(2) - H) / 2;
    from.expect(from.dtype(), {B, T, H + 2 * G, K});
    to.expect_contiguous(from.dtype(), {B, T, H, K});
    used.expect_contiguous(Dtype::float32, {B * attention_room(T, G, K)});
    const TensorView c = TensorView(cos, OP, "cos").expect(Dtype::float32, {T, K / 2});
    const TensorView s = TensorView(sin, OP, "sin").expect(Dtype::float32, {T, K / 2});
    const int64_t* seen =
        lengths.is_none() ? nullptr : TensorView(lengths, OP, "lengths").expect_contiguous(Dtype::int64, {B}).data<int64_t>();
    by_dtype(from, [&](auto element) {
        using E = decltype(element);
        const Heads<E> heads{from.data<const E>(), from.stride(0), from.stride(1), from.stride(2)};
        packed_attention(heads, c.rows<const float>(), s.rows<const float>(), seen, B, T, H, G, K, used.data<float>(), to.data<E>(), threads);
    });
}

// Rows of bfloat16 to fp32, or back.
void convert_of(const py::object& x, const py::object& y, int threads) {
    const TensorView from(x, "convert", "x"), to(y, "convert", "y");
    from.expect_dims(2);
    const int64_t N = from.size(0), D = from.size(1);
    const bool widens = from.expect_bfloat16_or_float32();
    from.expect(from.dtype(), {N, D});
    to.expect(widens ? Dtype::float32 : Dtype::bfloat16, {N, D});
    py::gil_scoped_release released;
    if (widens)
        convert(from.rows<const uint16_t>(), N, D, to.rows<float>(), threads);
    else
        convert(from.rows<const float>(), N, D, to.rows<uint16_t>(), threads);
}

}  // namespace

void bind_rows(py::module_& m) {
    m.def("add_rmsnorm", &add_rmsnorm_of);
    m.def("swiglu", &swiglu_of);
    m.def("quantise_rows", &quantise_rows_of);
    m.def("dequantise", &dequantise_of);
    m.def("quantised_linear", &quantised_linear_of);
    m.def("multiplies_bytes", &multiplies_bytes, "Whether quantised_linear may be called: the level in use has sums of byte products.");
    m.def("rotate_and_stack", &rotate_and_stack_of);
    m.def("packed_attention", &packed_attention_of);
    m.def("attends", &attends, "Whether packed_attention may be called: the level in use has fused products.");
    m.def("attention_room", &attention_room);
    m.def("softmax", &softmax_of);
    m.def("unstack", &unstack_of);
    m.def("convert", &convert_of);
}

}  // namespace lad
