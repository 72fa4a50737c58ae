// What a binding needs to know of a torch tensor, read through its Python attributes: no torch header, any torch version.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <string>

#include "cpu/views.h"

namespace lad {

namespace py = pybind11;

// The element types an op may ask for.
enum class Dtype { int64, int32, int8, boolean, float32, float64, bfloat16, other };

class TensorView {
public:
    // Reads `tensor`; `op` and `name` begin every error: "<op>: <name> is <got>, expected <wanted>."
    TensorView(const py::handle& tensor, const char* op, const char* name) : op_(op), name_(name) {
        static PyObject* const names[] = {interned("shape"), interned("stride"), interned("dtype"), interned("is_cpu"), interned("data_ptr")};
        const py::object shape = attribute(tensor, names[0]);
        const py::object strides = called(tensor, names[1]);
        const py::object is_cpu = attribute(tensor, names[3]);
        if (!shape || !strides || !is_cpu || !PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr())) {
            PyErr_Clear();
            fail(py::str(py::type::handle_of(tensor).attr("__name__")), "a tensor");
        }
        dims_ = static_cast<size_t>(PyTuple_GET_SIZE(shape.ptr()));
        if (dims_ > MOST_DIMS) fail(std::to_string(dims_) + "-d", "at most 4-d");
        for (size_t i = 0; i < dims_; ++i) {
            shape_[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i)));
            strides_[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), static_cast<Py_ssize_t>(i)));
        }
        if (is_cpu.ptr() != Py_True) fail("on another device", "on cpu");
        const py::object dtype = attribute(tensor, names[2]);
        dtype_ = known(dtype);
        if (dtype_ == Dtype::other) other_ = py::str(dtype);
        data_ = PyLong_AsVoidPtr(called(tensor, names[4]).ptr());
    }

    // Raises ValueError unless dtype and shape are as named and the last axis is contiguous; returns itself.
    const TensorView& expect(Dtype dtype, std::initializer_list<int64_t> shape) const {
        if (dtype_ != dtype) fail(dtype_ == Dtype::other ? other_ : text(dtype_), text(dtype));
        bool is_same = dims_ == shape.size();
        for (size_t i = 0; is_same && i < dims_; ++i) is_same = shape_[i] == shape.begin()[i];
        if (!is_same) fail(text(shape_, dims_), text(shape.begin(), shape.size()));
        if (dims_ >= 2 && shape_[dims_ - 1] > 1 && strides_[dims_ - 1] != 1) fail("strided in its last axis", "contiguous there");
        return *this;
    }

    // The same, and no gap between rows.
    const TensorView& expect_contiguous(Dtype dtype, std::initializer_list<int64_t> shape) const {
        expect(dtype, shape);
        int64_t wanted = 1;
        for (size_t i = dims_; i-- > 0;) {
            if (shape_[i] > 1 && strides_[i] != wanted) fail("strided", "contiguous");
            wanted *= shape_[i];
        }
        return *this;
    }

    void expect_dims(size_t dims) const {
        if (dims_ != dims) fail(std::to_string(dims_) + "-d", std::to_string(dims) + "-d");
    }

    // Raises ValueError unless the type is one the vector loops are compiled for; returns whether it is bfloat16.
    bool expect_bfloat16_or_float32() const {
        if (dtype_ != Dtype::float32 && dtype_ != Dtype::bfloat16) fail(dtype_ == Dtype::other ? other_ : text(dtype_), "torch.float32 or torch.bfloat16");
        return dtype_ == Dtype::bfloat16;
    }

    size_t dims() const { return dims_; }
    int64_t size(size_t axis) const { return shape_[axis]; }
    int64_t stride(size_t axis) const { return strides_[axis]; }
    Dtype dtype() const { return dtype_; }

    template <typename T>
    T* data() const {
        return static_cast<T*>(data_);
    }

    template <typename T>
    Rows<T> rows() const {
        return {data<T>(), strides_[0]};
    }

    template <typename T>
    Column<T> column() const {
        return {data<T>(), strides_[0]};
    }

    [[noreturn]] void fail(const std::string& got, const std::string& wanted) const {
        throw py::value_error(std::string(op_) + ": " + name_ + " is " + got + ", expected " + wanted + ".");
    }

private:
    static constexpr size_t MOST_DIMS = 4;

    static PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

    static py::object attribute(const py::handle& of, PyObject* name) {
        return py::reinterpret_steal<py::object>(PyObject_GetAttr(of.ptr(), name));
    }

    static py::object called(const py::handle& of, PyObject* name) {
        return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(of.ptr(), name));
    }

    static const char* text(Dtype dtype) {
        static const char* const names[] = {"torch.int64",   "torch.int32",   "torch.int8",     "torch.bool",
                                            "torch.float32", "torch.float64", "torch.bfloat16", "another type"};
        return names[static_cast<int>(dtype)];
    }

    // torch's dtype objects are the same for the life of the process.
    static Dtype known(const py::object& dtype) {
        static const char* const names[] = {"int64", "int32", "int8", "bool", "float32", "float64", "bfloat16"};
        static PyObject* objects[std::size(names)] = {};
        if (objects[0] == nullptr) {
            const py::module_ torch = py::module_::import("torch");
            for (size_t i = 0; i < std::size(names); ++i) objects[i] = py::object(torch.attr(names[i])).release().ptr();
        }
        for (size_t i = 0; i < std::size(names); ++i)
            if (objects[i] == dtype.ptr()) return static_cast<Dtype>(i);
        return Dtype::other;
    }

    static std::string text(const int64_t* shape, size_t dims) {
        std::string out = "(";
        for (size_t i = 0; i < dims; ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
        return out + (dims == 1 ? ",)" : ")");
    }

    const char* op_;
    const char* name_;
    int64_t shape_[MOST_DIMS] = {}, strides_[MOST_DIMS] = {};
    size_t dims_ = 0;
    Dtype dtype_ = Dtype::other;
    std::string other_;
    void* data_ = nullptr;
};

}  // namespace lad
