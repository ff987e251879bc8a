#include "handlers.h"

#include <array>
#include <cstdio>

#include "python_handlers.h"

namespace py = pybind11;

namespace hpu_emulator {
namespace {

constexpr std::array<const char*, 5> kNames = {"acquire", "sync", "fallback", "compilation",
                                               "bad_index"};
// Leaked: the interpreter may be gone when statics are destroyed.
auto& callbacks = *new std::array<PyObject*, kNames.size()>{};

template <size_t Which, typename... Args>
void call(Args&&... args) {
  if (callbacks[Which] == nullptr) {
    return;
  }
  const py::gil_scoped_acquire gil;
  py::reinterpret_borrow<py::object>(callbacks[Which])(std::forward<Args>(args)...);
}

}  // namespace

void set_handler(const std::string& name, py::object callback) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) {
      Py_XDECREF(callbacks[i]);
      callbacks[i] = callback.is_none() ? nullptr : callback.release().ptr();
      return;
    }
  }
  throw py::value_error("no handler is called " + name);
}

void notify_acquire(int index) { call<0>(index); }

void notify_sync(const char* kind, const std::string& op, int64_t bytes) {
  call<1>(kind, op, bytes);
}

void notify_fallback(const std::string& op) { call<2>(op); }

void notify_compilation(const Compilation& compilation) {
  if (callbacks[3] == nullptr) {
    return;
  }
  const py::gil_scoped_acquire gil;
  std::array<char, 33> key{};
  std::snprintf(key.data(), key.size(), "%016llx%016llx",
                static_cast<unsigned long long>(compilation.key_high),
                static_cast<unsigned long long>(compilation.key_low));
  const py::bytes words(reinterpret_cast<const char*>(compilation.words.data()),
                        compilation.words.size() * sizeof(int64_t));
  py::reinterpret_borrow<py::object>(callbacks[3])(compilation.recipe, compilation.mode, key.data(),
                                                   words, compilation.num_ops,
                                                   compilation.workspace_bytes);
}

void notify_bad_index(const std::string& op, int64_t index, int64_t size) {
  call<4>(op, index, size);
}

}  // namespace hpu_emulator
