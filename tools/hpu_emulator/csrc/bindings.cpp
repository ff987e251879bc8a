#include <torch/csrc/utils/pybind.h>

#include "fallback.h"
#include "memory.h"
#include "observer.h"
#include "python_handlers.h"
#include "random.h"
#include "recipes.h"
#include "transfer.h"

namespace py = pybind11;

namespace hpu_emulator {
namespace {

py::dict stats_dict(int index) {
  const MemoryStats stats = memory_stats(static_cast<c10::DeviceIndex>(index));
  py::dict out;
  out["Limit"] = stats.limit;
  out["InUse"] = stats.in_use;
  out["MaxInUse"] = stats.max_in_use;
  out["NumAllocs"] = stats.num_allocs;
  out["NumFrees"] = stats.num_frees;
  out["ActiveAllocs"] = stats.active_allocs;
  out["MaxAllocSize"] = stats.max_alloc_size;
  out["Graphs"] = stats.graphs;
  out["Workspace"] = stats.workspace;
  return out;
}

void bind_devices(py::module_& module) {
  module.def("device_count", [] { return int(device_count()); });
  module.def("set_device_count", &set_device_count);
  module.def("current_device", [] { return int(current_device()); });
  module.def("set_current_device", [](int i) { set_current_device(c10::DeviceIndex(i)); });
  module.def("memory_stats", &stats_dict);
  module.def("set_memory_limit",
             [](int i, int64_t bytes) { set_memory_limit(c10::DeviceIndex(i), bytes); });
  module.def("reset_peak_memory", [](int i) { reset_peak_memory(c10::DeviceIndex(i)); });
  module.def("reset_accumulated_memory",
             [](int i) { reset_accumulated_memory(c10::DeviceIndex(i)); });
  module.def("charge_graph_memory",
             [](int i, int64_t bytes) { charge_graph_memory(c10::DeviceIndex(i), bytes); });
  module.def("current_stream", [] { return current_stream(-1).id(); });
  module.def("exchange_stream", [](int64_t id) {
    const c10::Device device(kHpu, current_device());
    return exchange_stream(c10::Stream(c10::Stream::UNSAFE, device, id)).id();
  });
  module.def("synchronize", [] { finish_device(true); }, py::call_guard<py::gil_scoped_release>());
  module.def("forget_acquired_devices", &forget_acquired_devices);
  // By the ids that torch.Event gives for events that have been recorded.
  module.def("elapsed_ms", [](int64_t first, int64_t second) {
    TORCH_CHECK(first != 0 && second != 0, "both events must be recorded before elapsed_time()");
    return reinterpret_cast<const EventState*>(second)->time_ms -
           reinterpret_cast<const EventState*>(first)->time_ms;
  });
  module.def("generator", [](int i) { return generator_of(c10::DeviceIndex(i)); });
  module.def("data_ptr", [](const at::Tensor& tensor) {
    return reinterpret_cast<intptr_t>(tensor.storage().data()) +
           tensor.storage_offset() * static_cast<int64_t>(tensor.itemsize());
  });
}

void bind_recipes(py::module_& module) {
  module.def("set_lazy", [](bool lazy) {
    recipe_settings().lazy = lazy;
    set_workspace_tracking(lazy);
  });
  module.def("is_lazy", [] { return recipe_settings().lazy; });
  module.def("set_max_ops", [](int64_t n) { recipe_settings().max_ops = n; });
  module.def("set_compile_only", [](bool on) { recipe_settings().compile_only = on; });
  module.def("is_compile_only", [] { return recipe_settings().compile_only; });
  module.def("counts", [] {
    const RecipeCounts counts = recipe_counts();
    return py::make_tuple(counts.compilations, counts.launches, counts.ops, num_fallbacks());
  });
  module.def("reset_recipes", &reset_recipes);
  module.def("flush", &flush, py::call_guard<py::gil_scoped_release>());
  module.def("num_pending_ops", &num_pending_ops);
  module.def("num_recipes", &num_recipes);
  module.def("begin_region", &begin_region);
  module.def("end_region", [](const std::string& key, int64_t n) { end_region(key, n); });
  module.def("abandon_region", &abandon_region);
  module.def("count_launch", &count_launch);
  module.def("last_recipe", &last_recipe);
  module.def("mark_constant", &mark_constant);
  module.def("unmark_constants", &unmark_constants);
  module.def("dtype_name", [](int dtype) {
    return std::string(c10::toString(static_cast<c10::ScalarType>(dtype)));
  });
  module.def("text_of", [](int64_t hash) { return text_of(static_cast<uint64_t>(hash)); });
}

void bind_settings(py::module_& module) {
  module.def("set_handler", &set_handler);
  module.def("set_int64_narrowing", [](bool on) { fallback_settings().narrow_int64 = on; });
  module.def("set_tanh_gelu", [](bool on) { fallback_settings().tanh_gelu = on; });
  module.def("set_negative_indices", [](bool on) { fallback_settings().negative_indices = on; });
  module.def("set_place_on_cpu", &set_place_on_cpu);
}

}  // namespace
}  // namespace hpu_emulator

PYBIND11_MODULE(_C, module) {
  hpu_emulator::bind_devices(module);
  hpu_emulator::bind_recipes(module);
  hpu_emulator::bind_settings(module);
  hpu_emulator::bind_graphs(module);
}
