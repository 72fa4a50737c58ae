// The parts of the extension module, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace lad {

void bind_random(pybind11::module_& m);
void bind_update(pybind11::module_& m);
void bind_tokens(pybind11::module_& m);
void bind_rows(pybind11::module_& m);
void bind_noise(pybind11::module_& m);

}  // namespace lad
