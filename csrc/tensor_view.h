// What a binding needs to know of a torch tensor, read through its Python attributes: no torch header, any torch version.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace lad {

namespace py = pybind11;

class TensorView {
public:
    // Reads `tensor`; `op` and `name` begin every error: "<op>: <name> is <got>, expected <wanted>."
    TensorView(const py::handle& tensor, const char* op, const char* name) : op_(op), name_(name) {
        if (!py::hasattr(tensor, "data_ptr")) fail(py::str(py::type::handle_of(tensor).attr("__name__")), "a tensor");
        for (const auto& size : tensor.attr("shape")) shape_.push_back(size.cast<int64_t>());
        for (const auto& stride : tensor.attr("stride")()) strides_.push_back(stride.cast<int64_t>());
        dtype_ = py::str(tensor.attr("dtype"));
        device_ = py::str(tensor.attr("device").attr("type"));
        data_ = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
    }

    // Raises ValueError unless device, dtype and shape are as named and the last axis is contiguous; returns itself.
    const TensorView& expect(const char* device, const char* dtype, const std::vector<int64_t>& shape) const {
        if (device_ != device) fail("on " + device_, std::string("on ") + device);
        if (dtype_ != dtype) fail(dtype_, dtype);
        if (shape_ != shape) fail(text(shape_), text(shape));
        if (shape_.size() >= 2 && shape_.back() > 1 && strides_.back() != 1) fail("strided in its last axis", "contiguous there");
        return *this;
    }

    void expect_dims(size_t dims) const {
        if (shape_.size() != dims) fail(std::to_string(shape_.size()) + "-d", std::to_string(dims) + "-d");
    }

    size_t dims() const { return shape_.size(); }
    int64_t size(size_t axis) const { return shape_[axis]; }
    int64_t stride(size_t axis) const { return strides_[axis]; }

    template <typename T>
    T* data() const {
        return static_cast<T*>(data_);
    }

private:
    [[noreturn]] void fail(const std::string& got, const std::string& wanted) const {
        throw py::value_error(std::string(op_) + ": " + name_ + " is " + got + ", expected " + wanted + ".");
    }

    static std::string text(const std::vector<int64_t>& shape) {
        std::string out = "(";
        for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
        return out + (shape.size() == 1 ? ",)" : ")");
    }

    const char* op_;
    const char* name_;
    std::vector<int64_t> shape_, strides_;
    std::string dtype_, device_;
    void* data_ = nullptr;
};

}  // namespace lad
