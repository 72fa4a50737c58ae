// update: its buffers, rules and tables are Python objects, read by attribute once and then known again by identity.
#include <array>
#include <memory>
#include <vector>

#include "bindings.h"
#include "cpu/update.h"
#include "tensor_view.h"

namespace lad {

namespace {

constexpr const char* OP = "update";

// A tensor whose address is in use, and the attribute it was read from.
struct Held {
    py::object name, tensor;
};

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

    TensorView read(const char* name) const {
        py::object tensor = of_.attr(name);
        const TensorView view(tensor, OP, name);
        held_.push_back({py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)), std::move(tensor)});
        return view;
    }

    int64_t stride() const { return stride_; }
    std::vector<Held>& held() const { return held_; }

private:
    const py::object& of_;
    int64_t B_, R_, stride_ = -1;
    mutable std::vector<Held> held_;
};

UpdateBuffers buffers_of(const py::object& from, int64_t B, int64_t R, std::vector<Held>& held) {
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
    held = std::move(fields.held());
    return to;
}

UpdateRules rules_of(const py::object& from, int64_t B) {
    const Fields fields(from, B, 0);
    const auto flag = [&](const char* name) { return fields.column<bool>(name, Dtype::boolean); };
    return {flag("redraws"),   flag("is_weighted"), flag("is_clusters"),  flag("is_bernoulli"), flag("is_lowest"),
            flag("retains"),   flag("transfers"),   flag("locks"),        flag("is_permanent"), flag("splits"),
            flag("by_confidence"), flag("delays_eos"), fields.column<float>("noise_clip", Dtype::float32),
            fields.column<float>("threshold", Dtype::float32)};
}

// What stays where it is from step to step: read and checked once, then used as often as wanted.
class Prepared {
public:
    Prepared(const py::object& buffers, const py::object& rules, const py::object& tables) : rules_object_(rules), tables_object_(tables) {
        const TensorView answer(buffers.attr("answer"), OP, "answer"), whole(tables.attr("whole"), OP, "tables.whole");
        answer.expect_dims(2);
        whole.expect_dims(3);
        B_ = answer.size(0);
        R_ = answer.size(1);
        const int64_t S = whole.size(0);
        buffers_ = buffers_of(buffers, B_, R_, held_);
        rules_ = rules_of(rules, B_);
        tables_ = {whole.expect_contiguous(Dtype::int64, {S, 9, B_}).data<int64_t>(),
                   TensorView(tables.attr("probability"), OP, "tables.probability").expect_contiguous(Dtype::float64, {S, B_}).data<double>(), S};
    }

    // Whether these are the objects that were read: rules and tables are frozen, of the buffers every tensor is compared.
    bool knows(const py::object& buffers, const py::object& rules, const py::object& tables) const {
        if (!rules.is(rules_object_) || !tables.is(tables_object_)) return false;
        for (const Held& held : held_) {
            const py::object now = py::reinterpret_steal<py::object>(PyObject_GetAttr(buffers.ptr(), held.name.ptr()));
            if (!now) throw py::error_already_set();
            if (!now.is(held.tensor)) return false;
        }
        return true;
    }

    void run(const py::object& token, const py::object& confidence, int64_t mask_id, unsigned used) const {
        const TensorView t(token, OP, "token"), c(confidence, OP, "confidence");
        for (const TensorView* view : {&t, &c}) {
            view->expect_dims(2);
            if (view->size(0) != B_ || view->size(1) != R_) view->fail("of another shape", "that of answer");
        }
        if (t.dtype() != Dtype::int64) t.fail("of another type", "torch.int64");
        if (c.dtype() != Dtype::float32) c.fail("of another type", "torch.float32");
        const Prediction prediction{t.data<int64_t>(), t.stride(0), t.stride(1), c.data<float>(), c.stride(0), c.stride(1)};
        update(buffers_, rules_, tables_, prediction, B_, R_, mask_id, used);
    }

private:
    py::object rules_object_, tables_object_;
    std::vector<Held> held_;
    UpdateBuffers buffers_;
    UpdateRules rules_;
    UpdateTables tables_;
    int64_t B_, R_;
};

// Reading 40 tensors takes ten times as long as an update: the batches in flight stay read, and their tensors alive, until as many others
// have come. Never destroyed, since the interpreter is gone by then; guarded by its lock.
const Prepared& prepared(const py::object& buffers, const py::object& rules, const py::object& tables) {
    static auto& known = *new std::array<std::unique_ptr<Prepared>, 4>;
    static size_t next = 0;
    for (const auto& one : known)
        if (one && one->knows(buffers, rules, tables)) return *one;
    auto read = std::make_unique<Prepared>(buffers, rules, tables);
    auto& place = known[next++ % known.size()];
    place = std::move(read);
    return *place;
}

void update_of(const py::object& buffers, const py::object& rules, const py::object& tables, const py::object& token,
               const py::object& confidence, int64_t mask_id, unsigned used) {
    prepared(buffers, rules, tables).run(token, confidence, mask_id, used);
}

}  // namespace

void bind_update(py::module_& m) { m.def("update", &update_of); }

}  // namespace lad
