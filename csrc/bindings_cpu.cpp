// The Python face of csrc/cpu: its parts check every contract, then hand over raw pointers.
#include "bindings.h"
#include "cpu/levels.h"

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU ops of lad_engine; see csrc/cpu";
    lad::bind_random(m);
    lad::bind_update(m);
    lad::bind_tokens(m);
    lad::bind_rows(m);
    lad::bind_noise(m);
    m.def("level", [] { return static_cast<int>(lad::level()); }, "Instructions in use: 0 the build's own, 1 AVX2, 2 AVX-512, 3 with VNNI.");
    m.def("force_level", [](int wanted) { return static_cast<int>(lad::force_level(wanted)); },
          "Use a lower level, for tests; -1 goes back to the best. Returns the level in use.");
}
