// update: its buffers, rules and tables are Python objects, read by attribute.
#include "bindings.h"
#include "cpu/update.h"
#include "tensor_view.h"

namespace lad {

namespace {

constexpr const char* OP = "update";

// The tensors of one Python object, read by attribute name.
class Fields {
public:
    Fields(const py::object& of, int64_t B, int64_t R) : of_(of), B_(B), R_(R) {}

    template <typename T>
    T* per_position(const char* name, Dtype dtype) {
        const TensorView view = read(name);
        view.expect(dtype, {B_, R_});
        if (stride_ < 0) stride_ = view.stride(0);
        if (B_ > 1 && view.stride(0) != stride_) view.fail("strided unlike the others", "one stride between rows for all");
        return view.data<T>();
    }

    template <typename T>
    Rows<T> written(const char* name, Dtype dtype) const {
        return read(name).expect(dtype, {B_}).template rows<T>();
    }

    template <typename T>
    Column<T> column(const char* name, Dtype dtype) const {
        return read(name).expect(dtype, {B_}).template column<T>();
    }

    TensorView read(const char* name) const { return TensorView(of_.attr(name), OP, name); }
    int64_t stride() const { return stride_; }

private:
    const py::object& of_;
    int64_t B_, R_, stride_ = -1;
};

UpdateBuffers buffers_of(const py::object& from, int64_t B, int64_t R) {
    Fields fields(from, B, R);
    UpdateBuffers to{};
    to.answer = fields.per_position<int64_t>("answer", Dtype::int64);
    to.before = fields.per_position<int64_t>("before", Dtype::int64);
    to.predicted = fields.per_position<int64_t>("predicted", Dtype::int64);
    to.shown = fields.per_position<int64_t>("shown", Dtype::int64);
    to.first_set = fields.per_position<int64_t>("first_set", Dtype::int64);
    to.last_changed = fields.per_position<int64_t>("last_changed", Dtype::int64);
    to.is_open = fields.per_position<bool>("is_open", Dtype::boolean);
    to.was_shown = fields.per_position<bool>("was_shown", Dtype::boolean);
    to.retained = fields.per_position<bool>("retained", Dtype::boolean);
    to.confidence = fields.per_position<float>("confidence", Dtype::float32);
    to.stride = fields.stride();
    to.answer_start = fields.column<int64_t>("answer_start", Dtype::int64);
    to.answer_length = fields.column<int64_t>("answer_length", Dtype::int64);
    to.seeds = fields.column<int64_t>("seeds", Dtype::int64);
    to.steps = fields.column<int64_t>("steps", Dtype::int64);
    to.evaluations = fields.column<int64_t>("evaluations", Dtype::int64);
    to.early_stop = fields.column<bool>("early_stop", Dtype::boolean);
    to.repeats = fields.written<int64_t>("repeats", Dtype::int64);
    to.nfe = fields.written<int64_t>("nfe", Dtype::int64);
    to.row_steps = fields.written<int64_t>("row_steps", Dtype::int64);
    to.done = fields.written<bool>("done", Dtype::boolean);
    to.acted = fields.written<bool>("acted", Dtype::boolean);
    to.stopped_early = fields.written<bool>("stopped_early", Dtype::boolean);
    const TensorView ids = fields.read("ids"), eos = fields.read("eos_ids");
    ids.expect_dims(2);
    eos.expect_dims(1);
    to.T = ids.size(1);
    to.ids = ids.expect(Dtype::int64, {B, to.T}).rows<int64_t>();
    to.eos_count = eos.size(0);
    to.eos_ids = eos.expect_contiguous(Dtype::int64, {to.eos_count}).data<int64_t>();
    to.step = fields.read("step").expect(Dtype::int64, {}).data<int64_t>();
    return to;
}

UpdateRules rules_of(const py::object& from, int64_t B) {
    const Fields fields(from, B, 0);
    const auto flag = [&](const char* name) { return fields.column<bool>(name, Dtype::boolean); };
    return {flag("redraws"),   flag("is_weighted"), flag("is_clusters"),  flag("is_bernoulli"), flag("is_lowest"),
            flag("retains"),   flag("transfers"),   flag("locks"),        flag("is_permanent"), flag("splits"),
            flag("by_confidence"), flag("delays_eos"), fields.column<float>("noise_clip", Dtype::float32)};
}

// What stays where it is from step to step: read and checked once, then used as often as wanted.
class Prepared {
public:
    Prepared(const py::object& buffers, const py::object& rules, const py::object& tables, unsigned used) : used_(used) {
        const TensorView answer(buffers.attr("answer"), OP, "answer"), whole(tables.attr("whole"), OP, "tables.whole");
        answer.expect_dims(2);
        whole.expect_dims(3);
        B_ = answer.size(0);
        R_ = answer.size(1);
        const int64_t S = whole.size(0);
        buffers_ = buffers_of(buffers, B_, R_);
        rules_ = rules_of(rules, B_);
        tables_ = {whole.expect_contiguous(Dtype::int64, {S, 9, B_}).data<int64_t>(),
                   TensorView(tables.attr("probability"), OP, "tables.probability").expect_contiguous(Dtype::float64, {S, B_}).data<double>(), S};
    }

    void run(const py::object& token, const py::object& confidence, int64_t mask_id) const {
        const TensorView t(token, OP, "token"), c(confidence, OP, "confidence");
        for (const TensorView* view : {&t, &c}) {
            view->expect_dims(2);
            if (view->size(0) != B_ || view->size(1) != R_) view->fail("of another shape", "that of answer");
        }
        if (t.dtype() != Dtype::int64) t.fail("of another type", "torch.int64");
        if (c.dtype() != Dtype::float32) c.fail("of another type", "torch.float32");
        const Prediction prediction{t.data<int64_t>(), t.stride(0), t.stride(1), c.data<float>(), c.stride(0), c.stride(1)};
        update(buffers_, rules_, tables_, prediction, B_, R_, mask_id, used_);
    }

private:
    UpdateBuffers buffers_;
    UpdateRules rules_;
    UpdateTables tables_;
    int64_t B_, R_;
    unsigned used_;
};

}  // namespace

void bind_update(py::module_& m) {
    py::class_<Prepared>(m, "PreparedUpdate")
        .def(py::init<const py::object&, const py::object&, const py::object&, unsigned>())
        .def("run", &Prepared::run);
}

}  // namespace lad
