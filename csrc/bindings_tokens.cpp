// choose_token over whole rows, and the scan that lm_head feeds chunk by chunk.
#include <vector>

#include "bindings.h"
#include "cpu/token_scan.h"
#include "tensor_view.h"

namespace lad {

namespace {

// A scan, with the tensors its rule points into kept alive.
class BoundScan {
public:
    BoundScan(const char* op, const py::object& uniforms, const py::object& temperature, const py::object& top_k, const py::object& top_p,
              const py::object& drop_crossing, const py::object& full_confidence, const py::object& bias_ids, const py::object& bias_values,
              int64_t V, int64_t K)
        : N_(TensorView(uniforms, op, "uniforms").size(0)),
          held_{uniforms, temperature, top_k, top_p, drop_crossing, full_confidence, bias_values},
          scan_(make(op, bias_ids, V, K)) {}

    BoundScan(const BoundScan&) = delete;

    void scan(const py::object& logits, int64_t first, int threads) {
        const TensorView l(logits, "lm_head", "logits");
        l.expect_dims(2);
        const int64_t width = l.size(1);
        const bool is_bfloat16 = l.expect_bfloat16_or_float32();
        l.expect(l.dtype(), {N_, width});
        if (first % TokenScan::BLOCK) throw py::value_error("lm_head: a chunk begins inside a block of 1024 ids, expected at its start.");
        py::gil_scoped_release released;
        if (is_bfloat16)
            scan_.scan(l.rows<const uint16_t>(), first, width, threads);
        else
            scan_.scan(l.rows<const float>(), first, width, threads);
    }

    void draw(const py::object& token, const py::object& confidence) const {
        scan_.draw(outputs("lm_head", token, confidence).data<int64_t>(), TensorView(confidence, "lm_head", "confidence").data<float>());
    }

    void choose(const py::object& logits, bool samples_all, int threads, const py::object& token, const py::object& confidence) {
        const TensorView l(logits, "choose_token", "logits");
        l.expect_dims(2);
        const int64_t V = l.size(1);
        const bool is_bfloat16 = l.expect_bfloat16_or_float32();
        l.expect(l.dtype(), {N_, V});
        int64_t* tokens = outputs("choose_token", token, confidence).data<int64_t>();
        float* confidences = TensorView(confidence, "choose_token", "confidence").data<float>();
        py::gil_scoped_release released;
        if (is_bfloat16)
            scan_.choose(l.rows<const uint16_t>(), V, samples_all, threads, tokens, confidences);
        else
            scan_.choose(l.rows<const float>(), V, samples_all, threads, tokens, confidences);
    }

private:
    TensorView outputs(const char* op, const py::object& token, const py::object& confidence) const {
        TensorView(confidence, op, "confidence").expect_contiguous(Dtype::float32, {N_});
        return TensorView(token, op, "token").expect_contiguous(Dtype::int64, {N_});
    }

    TokenScan make(const char* op, const py::object& bias_ids, int64_t V, int64_t K) const {
        const auto column = [&](size_t i, const char* name, Dtype dtype) { return TensorView(held_[i], op, name).expect(dtype, {N_}); };
        const TensorView ids(bias_ids, op, "bias_ids");
        ids.expect_dims(1);
        const int64_t M = ids.size(0);
        const TensorView bias = TensorView(held_[6], op, "bias_values").expect(Dtype::float32, {N_, M});
        const int64_t* id = ids.expect_contiguous(Dtype::int64, {M}).data<int64_t>();
        for (int64_t m = 0; m < M; ++m)
            if (id[m] < 0 || id[m] >= V) ids.fail(std::to_string(id[m]), "ids of the vocabulary");
        const TokenRule rule{column(0, "uniforms", Dtype::float32).column<float>(),
                             column(1, "temperature", Dtype::float32).column<float>(),
                             column(2, "top_k", Dtype::int64).column<int64_t>(),
                             column(3, "top_p", Dtype::float32).column<float>(),
                             column(4, "drop_crossing", Dtype::boolean).column<bool>(),
                             column(5, "full_confidence", Dtype::boolean).column<bool>(),
                             bias.rows<float>()};
        return TokenScan(rule, id, M, N_, K);
    }

    int64_t N_;
    std::vector<py::object> held_;
    TokenScan scan_;
};

}  // namespace

void bind_tokens(py::module_& m) {
    py::class_<BoundScan>(m, "TokenScan")
        .def(py::init<const char*, const py::object&, const py::object&, const py::object&, const py::object&, const py::object&,
                      const py::object&, const py::object&, const py::object&, int64_t, int64_t>())
        .def("scan", &BoundScan::scan)
        .def("draw", &BoundScan::draw)
        .def("choose", &BoundScan::choose);
    m.attr("SCAN_BLOCK") = TokenScan::BLOCK;
}

}  // namespace lad
