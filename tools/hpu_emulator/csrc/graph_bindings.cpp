#include <torch/csrc/utils/pybind.h>

#include "collectives.h"
#include "python_handlers.h"
#include "recorder.h"
#include "timeline.h"

namespace py = pybind11;

namespace hpu_emulator {

void bind_graphs(py::module_& module) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<Recorder>(module, "Recorder")
      .def(py::init<>())
      .def("begin", &Recorder::begin, no_gil)
      .def("end", &Recorder::end, no_gil)
      .def("abort", &Recorder::abort, no_gil)
      .def("replay", &Recorder::replay, no_gil)
      .def("reset", &Recorder::reset, no_gil)
      .def("set_inputs", &Recorder::set_inputs)
      .def("bind", &Recorder::bind)
      .def("drop_inputs", &Recorder::drop_inputs)
      .def("used_inputs", &Recorder::used_inputs)
      .def_property_readonly("is_captured", &Recorder::is_captured)
      .def_property_readonly("num_ops", &Recorder::num_ops)
      .def_property_readonly("charged_bytes", &Recorder::charged_bytes)
      .def_property_readonly("recipes", &Recorder::recipes);
  module.def("is_capturing", &is_capturing);
  module.def("set_lazy_collectives", &set_lazy_collectives);
  module.def("set_launch_latency", &set_launch_latency);
  module.def("set_timeline_enabled", &set_timeline_enabled);
  module.def("take_timeline", [] {
    py::list events;
    for (const TimelineEvent& event : take_timeline()) {
      events.append(py::make_tuple(event.recipe, event.mode, event.num_ops, event.is_new,
                                   event.begin_ns, event.end_ns));
    }
    return events;
  });
}

}  // namespace hpu_emulator
