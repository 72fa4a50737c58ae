// Tensors as an op sees them: a first element and the distance between entries or rows.
#pragma once

#include <cstdint>

namespace lad {

// One matrix argument; the last axis is contiguous.
template <typename T>
struct Rows {
    T* data;
    int64_t stride;
    T* operator[](int64_t row) const { return data + row * stride; }
};

// One vector argument.
template <typename T>
struct Column {
    const T* data;
    int64_t stride;
    T operator[](int64_t row) const { return data[row * stride]; }
};

}  // namespace lad
