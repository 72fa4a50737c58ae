// gaussian_noise, and the probabilities of soft_embedding.
#include "bindings.h"
#include "cpu/soft_scores.h"
#include "tensor_view.h"

namespace lad {

namespace {

NoiseKeys keys_of(const char* op, const py::object& seeds, const py::object& positions, const py::object& steps, int64_t purpose, int64_t N) {
    return {TensorView(seeds, op, "seeds").expect(Dtype::int64, {N}).column<int64_t>(),
            TensorView(positions, op, "positions").expect(Dtype::int64, {N}).column<int64_t>(),
            TensorView(steps, op, "steps").expect(Dtype::int64, {N}).column<int64_t>(), purpose};
}

void noise(const py::object& seeds, const py::object& positions, const py::object& steps, int64_t purpose, const py::object& out, int threads) {
    const TensorView o(out, "gaussian_noise", "out");
    o.expect_dims(2);
    const int64_t N = o.size(0), V = o.size(1);
    o.expect(Dtype::float32, {N, V});
    const NoiseKeys keys = keys_of("gaussian_noise", seeds, positions, steps, purpose, N);
    py::gil_scoped_release released;
    gaussian_noise(keys, N, V, o.rows<float>(), threads);
}

void probabilities(const py::object& tokens, const py::object& shift, const py::object& spread, const py::object& seeds,
                   const py::object& positions, const py::object& steps, int64_t purpose, const py::object& previous,
                   const py::object& noise, const py::object& out, int threads) {
    const char* op = "soft_embedding";
    const TensorView o(out, op, "out");
    o.expect_dims(2);
    const int64_t N = o.size(0), V = o.size(1);
    o.expect(Dtype::float32, {N, V});
    const NoiseKeys keys = keys_of(op, seeds, positions, steps, purpose, N);
    const SoftTokens soft{TensorView(tokens, op, "tokens").expect(Dtype::int64, {N}).column<int64_t>(),
                          TensorView(shift, op, "shift").expect(Dtype::float32, {N}).column<float>(),
                          TensorView(spread, op, "spread").expect(Dtype::float32, {N}).column<float>()};
    for (int64_t row = 0; row < N; ++row)
        if (soft.tokens[row] >= V) throw py::value_error("soft_embedding: a token is beyond the table, expected an id of its vocabulary.");
    Rows<const float> z{nullptr, 0}, old{nullptr, 0};
    Rows<const uint16_t> narrow{nullptr, 0};
    if (!noise.is_none()) z = TensorView(noise, op, "noise").expect(Dtype::float32, {N, V}).rows<const float>();
    if (!previous.is_none()) {
        const TensorView p(previous, op, "previous");
        const bool is_bfloat16 = p.expect_bfloat16_or_float32();
        p.expect(p.dtype(), {N, V});
        if (is_bfloat16)
            narrow = p.rows<const uint16_t>();
        else
            old = p.rows<const float>();
    }
    py::gil_scoped_release released;
    if (narrow.data != nullptr)
        soft_probabilities(soft, keys, narrow, z, N, V, o.rows<float>(), threads);
    else
        soft_probabilities(soft, keys, old, z, N, V, o.rows<float>(), threads);
}

}  // namespace

void bind_noise(py::module_& m) {
    m.def("gaussian_noise", &noise);
    m.def("soft_probabilities", &probabilities);
}

}  // namespace lad
