#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

namespace hpu_emulator {

// `name` is one of acquire, sync, fallback, compilation, bad_index; None removes.
void set_handler(const std::string& name, pybind11::object callback);

void bind_graphs(pybind11::module_& module);

}  // namespace hpu_emulator
