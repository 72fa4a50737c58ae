// The Python face of csrc/cpu: checks every contract, then hands over raw pointers.
#include <pybind11/pybind11.h>

#include "cpu/ops.h"
#include "tensor_view.h"

namespace py = pybind11;
using lad::TensorView;

namespace {

int64_t read_step(const char* op, const py::handle& step) {
    return *TensorView(step, op, "step").expect("cpu", "torch.int64", {}).data<int64_t>();
}

template <typename T>
lad::Rows<T> rows(const TensorView& view) {
    return {view.data<T>(), view.stride(0)};
}

void uniform(const py::object& seeds, const py::object& positions, const py::object& step, int64_t purpose, const py::object& out) {
    const TensorView s(seeds, "uniform", "seeds"), p(positions, "uniform", "positions"), o(out, "uniform", "out");
    s.expect_dims(1);
    p.expect_dims(1);
    const int64_t B = s.size(0), R = p.size(0);
    s.expect("cpu", "torch.int64", {B});
    p.expect("cpu", "torch.int64", {R});
    o.expect("cpu", "torch.float32", {B, R});
    const TensorView n(step, "uniform", "step");
    const bool has_own = n.dims() == 1;
    n.expect("cpu", "torch.int64", has_own ? std::vector<int64_t>{B} : std::vector<int64_t>{});
    lad::uniform(s.data<int64_t>(), s.stride(0), p.data<int64_t>(), p.stride(0), o.data<float>(), B, R, n.data<int64_t>(),
                 has_own ? n.stride(0) : 0, purpose);
}

void renoise(const py::object& tokens, const py::object& eligible, const py::object& weight, const py::object& count,
             const py::object& seeds, const py::object& step, int64_t mask_id, int64_t purpose, const py::object& out) {
    const TensorView t(tokens, "renoise", "tokens"), e(eligible, "renoise", "eligible"), w(weight, "renoise", "weight");
    const TensorView c(count, "renoise", "count"), s(seeds, "renoise", "seeds"), o(out, "renoise", "out");
    t.expect_dims(2);
    const int64_t B = t.size(0), R = t.size(1);
    t.expect("cpu", "torch.int64", {B, R});
    e.expect("cpu", "torch.bool", {B, R});
    w.expect("cpu", "torch.float32", {B, R});
    c.expect("cpu", "torch.int64", {B});
    s.expect("cpu", "torch.int64", {B});
    o.expect("cpu", "torch.int64", {B, R});
    lad::renoise(rows<int64_t>(t), rows<bool>(e), rows<float>(w), rows<int64_t>(c), rows<int64_t>(s), o.data<int64_t>(), B, R,
                 read_step("renoise", step), mask_id, purpose);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU ops of lad_engine; see csrc/cpu";
    m.def("uniform", &uniform);
    m.def("renoise", &renoise);
}
