// uniform, renoise and structured_noise.
#include <pybind11/stl.h>

#include <optional>

#include "bindings.h"
#include "cpu/ops.h"
#include "tensor_view.h"

namespace lad {

namespace {

int64_t read_step(const char* op, const py::handle& step) {
    return *TensorView(step, op, "step").expect(Dtype::int64, {}).data<int64_t>();
}

void uniform_of(const py::object& seeds, const py::object& positions, const py::object& step, int64_t purpose, const py::object& out) {
    const TensorView s(seeds, "uniform", "seeds"), p(positions, "uniform", "positions"), o(out, "uniform", "out");
    s.expect_dims(1);
    p.expect_dims(1);
    const int64_t B = s.size(0), R = p.size(0);
    s.expect(Dtype::int64, {B});
    p.expect(Dtype::int64, {R});
    o.expect_contiguous(Dtype::float32, {B, R});
    // One step for all sequences, or one each.
    const TensorView n(step, "uniform", "step");
    const bool has_own = n.dims() == 1;
    has_own ? n.expect(Dtype::int64, {B}) : n.expect(Dtype::int64, {});
    const Column<int64_t> steps = has_own ? n.column<int64_t>() : Column<int64_t>{n.data<int64_t>(), 0};
    uniform(s.column<int64_t>(), p.column<int64_t>(), o.data<float>(), B, R, steps, purpose);
}

void renoise_of(const py::object& tokens, const py::object& eligible, const py::object& weight, const py::object& count,
                const py::object& seeds, const py::object& step, int64_t mask_id, int64_t purpose, const py::object& out) {
    const TensorView t(tokens, "renoise", "tokens"), e(eligible, "renoise", "eligible"), w(weight, "renoise", "weight");
    const TensorView c(count, "renoise", "count"), s(seeds, "renoise", "seeds"), o(out, "renoise", "out");
    t.expect_dims(2);
    const int64_t B = t.size(0), R = t.size(1);
    t.expect(Dtype::int64, {B, R});
    e.expect(Dtype::boolean, {B, R});
    w.expect(Dtype::float32, {B, R});
    c.expect(Dtype::int64, {B});
    s.expect(Dtype::int64, {B});
    o.expect_contiguous(Dtype::int64, {B, R});
    renoise(t.rows<const int64_t>(), e.rows<const bool>(), w.rows<const float>(), c.column<int64_t>(), s.column<int64_t>(), o.data<int64_t>(),
            B, R, read_step("renoise", step), mask_id, purpose);
}

void structured_noise_of(const py::object& ids, const py::object& answer_start, const py::object& lengths, const py::object& seeds,
                         const py::object& step, int64_t mask_id, int variant, std::optional<float> fixed_level, const py::object& out,
                         const py::object& level, int threads) {
    constexpr const char* OP = "structured_noise";
    const TensorView i(ids, OP, "ids"), a(answer_start, OP, "answer_start"), l(lengths, OP, "lengths"), s(seeds, OP, "seeds");
    const TensorView o(out, OP, "out"), v(level, OP, "level");
    i.expect_dims(2);
    const int64_t B = i.size(0), T = i.size(1), at = read_step(OP, step);
    i.expect(Dtype::int64, {B, T});
    for (const TensorView* column : {&a, &l, &s}) column->expect(Dtype::int64, {B});
    o.expect_contiguous(Dtype::int64, {B, T});
    v.expect_contiguous(Dtype::float32, {B});
    structured_noise(i.rows<const int64_t>(), a.column<int64_t>(), l.column<int64_t>(), s.column<int64_t>(), B, T, at, mask_id,
                     static_cast<NoiseVariant>(variant), fixed_level.value_or(-1.0f), o.data<int64_t>(), v.data<float>(), threads);
}

}  // namespace

void bind_random(py::module_& m) {
    m.def("uniform", &uniform_of);
    m.def("renoise", &renoise_of);
    m.def("structured_noise", &structured_noise_of);
}

}  // namespace lad
