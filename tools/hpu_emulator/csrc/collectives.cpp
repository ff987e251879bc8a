#include "collectives.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <functional>
#include <mutex>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <unordered_map>

#include "alias.h"
#include "memory.h"
#include "observer.h"
#include "recipes.h"
#include "recorder.h"

namespace hpu_emulator {
namespace {

using Stack = torch::jit::Stack;
using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

bool lazy_collectives = false;

// Work of gloo on memory of the device, which it keeps alive.
class HostWork final : public c10d::Work {
 public:
  HostWork(c10::intrusive_ptr<c10d::Work> inner, Stack memory)
      : inner_(std::move(inner)), memory_(std::move(memory)) {}

  ~HostWork() override {
    // Threads of gloo must not write to memory that is gone.
    try {
      if (!memory_.empty()) {
        inner_->wait();
      }
    } catch (...) {
    }
  }

  bool isCompleted() override { return inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  std::exception_ptr exception() const override { return inner_->exception(); }
  int sourceRank() const override { return inner_->sourceRank(); }
  void synchronize() override { inner_->synchronize(); }
  bool wait(std::chrono::milliseconds timeout) override {
    const bool done = inner_->wait(timeout);
    memory_.clear();
    return done;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return inner_->getFuture(); }

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
  Stack memory_;
};

// Of collectives that are over when they return, and of those that are not launched.
class DoneWork final : public c10d::Work {
 public:
  explicit DoneWork(std::vector<at::Tensor> result) : result_(std::move(result)) {}

  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds timeout) override { return true; }
  void synchronize() override {}
  std::vector<at::Tensor> result() override { return result_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto future =
        c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future->markCompleted(c10::IValue(result_));
    return future;
  }

 private:
  std::vector<at::Tensor> result_;
};

bool is_group(const c10::IValue& value) {
  static const auto type = c10::getCustomClassType<Group>();
  return value.isObject() && *value.type() == *type;
}

c10::IValue& group_among(Stack& arguments) {
  for (c10::IValue& argument : arguments) {
    if (is_group(argument)) {
      return argument;
    }
  }
  TORCH_CHECK(false, "a collective has no process group");
}

// The group of the host over the backend that `group` has for the device.
Group host_group(const Group& group) {
  struct Known {
    c10::weak_intrusive_ptr<c10d::ProcessGroup> group;
    Group host;
  };
  static std::mutex mutex;
  static auto& known = *new std::unordered_map<const c10d::ProcessGroup*, Known>();
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto item = known.begin(); item != known.end();) {
    item = item->second.group.use_count() == 0 ? known.erase(item) : std::next(item);
  }
  const auto found = known.find(group.get());
  if (found != known.end()) {
    return found->second.host;
  }
  auto host = c10::make_intrusive<c10d::ProcessGroup>(group->getRank(), group->getSize());
  host->setBackend(c10::kCPU, c10d::ProcessGroup::BackendType::GLOO, group->getBackend(kHpu));
  known.emplace(group.get(), Known{c10::weak_intrusive_ptr<c10d::ProcessGroup>(group), host});
  return host;
}

c10::DeviceIndex device_of(const c10::IValue& value) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    return tensor.defined() && tensor.device().type() == kHpu ? tensor.device().index() : -1;
  }
  if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) {
      const c10::DeviceIndex index = device_of(item);
      if (index >= 0) {
        return index;
      }
    }
  }
  return -1;
}

c10::IValue map_tensors(const c10::IValue& value,
                        const std::function<at::Tensor(const at::Tensor&)>& map) {
  if (value.isTensor()) {
    return map(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> tensors;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      tensors.push_back(map(tensor));
    }
    return tensors;
  }
  if (value.isList() && !value.toListRef().empty() && value.toListRef()[0].isTensorList()) {
    c10::List<c10::List<at::Tensor>> lists;
    for (const c10::IValue& item : value.toListRef()) {
      lists.push_back(map_tensors(item, map).toTensorList());
    }
    return lists;
  }
  return value;
}

std::vector<at::Tensor> tensors_in(const c10::IValue& value) {
  std::vector<at::Tensor> tensors;
  map_tensors(value, [&](const at::Tensor& tensor) {
    tensors.push_back(tensor);
    return tensor;
  });
  return tensors;
}

// gloo reduces to all: each rank then takes its part.
void reduce_scatter(c10d::Backend& backend, const Stack& host, at::Tensor out, at::Tensor in) {
  c10d::AllreduceOptions options;
  for (const c10::IValue& value : host) {
    if (value.isObject() && !is_group(value)) {
      options.reduceOp = *value.toCustomClass<c10d::ReduceOp>();
    }
  }
  std::vector<at::Tensor> sums{in.contiguous().clone()};
  TORCH_CHECK(sums[0].numel() == out.numel() * backend.getSize(), "reduce_scatter: the input has ",
              sums[0].numel(), " elements, not ", backend.getSize(), " times ", out.numel());
  backend.allreduce(sums, options)->wait();
  out.copy_(sums[0].view({backend.getSize(), -1})[backend.getRank()].view_as(out));
}

// Lists of tensors travel as one tensor: gloo knows all_to_all in that form only.
void all_to_all(c10d::Backend& backend, std::vector<at::Tensor> outs, std::vector<at::Tensor> ins) {
  std::vector<int64_t> out_sizes;
  std::vector<int64_t> in_sizes;
  std::vector<at::Tensor> flat;
  for (const at::Tensor& tensor : ins) {
    flat.push_back(tensor.reshape({-1}));
    in_sizes.push_back(tensor.numel());
  }
  int64_t total = 0;
  for (const at::Tensor& tensor : outs) {
    out_sizes.push_back(tensor.numel());
    total += tensor.numel();
  }
  at::Tensor sent = at::cat(flat);
  at::Tensor received = at::empty({total}, sent.options());
  c10d::AllToAllOptions options;
  const auto parts = received.split_with_sizes(out_sizes);
  // Takes the sizes out of its arguments.
  backend.alltoall_base(received, sent, out_sizes, in_sizes, options)->wait();
  for (size_t i = 0; i < outs.size(); ++i) {
    outs[i].copy_(parts[i].view_as(outs[i]));
  }
}

// What gloo lacks is made of what it has. False for what it has.
bool run_composed(const std::string& name, c10d::Backend& backend, const Stack& host) {
  if (name == "c10d::_reduce_scatter_base_") {
    reduce_scatter(backend, host, host[0].toTensor(), host[1].toTensor());
  } else if (name == "c10d::reduce_scatter_") {
    const auto lists = host[1].toListRef();
    reduce_scatter(backend, host, host[0].toTensorVector()[0], at::cat(lists[0].toTensorVector()));
  } else if (name == "c10d::reduce_scatter_tensor_coalesced_") {
    const auto outs = host[0].toTensorVector();
    const auto ins = host[1].toTensorVector();
    for (size_t i = 0; i < outs.size(); ++i) {
      reduce_scatter(backend, host, outs[i], ins[i]);
    }
  } else if (name == "c10d::alltoall_") {
    all_to_all(backend, host[0].toTensorVector(), host[1].toTensorVector());
  } else {
    return false;
  }
  return true;
}

// The results of a collective that is over: its first argument as often as the schema wants it.
void push_done(const c10::OperatorHandle& op, const Stack& arguments, Stack* stack) {
  const size_t num_results = op.schema().returns().size();
  if (num_results == 2) {
    stack->push_back(arguments[0]);
  }
  if (num_results > 0) {
    stack->emplace_back(
        c10::intrusive_ptr<c10d::Work>(c10::make_intrusive<DoneWork>(tensors_in(arguments[0]))));
  }
}

void collective(const c10::OperatorHandle& op, Stack* stack) {
  const size_t num_arguments = op.schema().arguments().size();
  const bool is_graph_op = !recipe_settings().lazy || lazy_collectives;
  TORCH_CHECK(is_graph_op || !is_capturing(),
              "collective nonSFG is not supported during hpu graph capturing (set "
              "PT_HPU_ENABLE_LAZY_COLLECTIVES=true)");
  if (!is_graph_op) {
    flush();
  }
  Stack arguments(stack->end() - static_cast<int64_t>(num_arguments), stack->end());
  torch::jit::drop(*stack, num_arguments);
  c10::IValue& group = group_among(arguments);
  group = host_group(group.toCustomClass<c10d::ProcessGroup>());
  const size_t bottom = stack->size();
  if (recipe_settings().compile_only) {
    push_done(op, arguments, stack);
  } else {
    stack->insert(stack->end(), arguments.begin(), arguments.end());
    execute_collective(op, stack);
  }
  const c10::ArrayRef<c10::IValue> results(stack->data() + bottom, stack->size() - bottom);
  if (device_of(arguments[0]) >= 0) {
    report_op(op, arguments, results);
    if (recipe_settings().lazy && lazy_collectives) {
      record(info_of(op), arguments, results);
    }
  }
}

}  // namespace

bool is_collective(const c10::OperatorHandle& op) {
  return op.schema().name().rfind("c10d::", 0) == 0;
}

void set_lazy_collectives(bool enabled) { lazy_collectives = enabled; }

void execute_collective(const c10::OperatorHandle& op, Stack* stack) {
  const size_t num_arguments = op.schema().arguments().size();
  const Stack arguments(stack->end() - static_cast<int64_t>(num_arguments), stack->end());
  torch::jit::drop(*stack, num_arguments);
  c10::DeviceIndex device = 0;
  for (const c10::IValue& argument : arguments) {
    device = std::max(device, device_of(argument));
  }
  Aliases aliases(device);
  Stack host;
  for (const c10::IValue& argument : arguments) {
    host.push_back(
        map_tensors(argument, [&](const at::Tensor& tensor) { return aliases.to_host(tensor); }));
  }
  const auto group = group_among(host).toCustomClass<c10d::ProcessGroup>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (run_composed(op.schema().name(), *group->getBackend(c10::kCPU), host)) {
    push_done(op, arguments, stack);
    return;
  }
  op.callBoxed(&host);
  for (const c10::IValue& result : host) {
    if (result.isObject()) {
      stack->emplace_back(c10::intrusive_ptr<c10d::Work>(
          c10::make_intrusive<HostWork>(result.toCustomClass<c10d::Work>(), arguments)));
    } else {
      stack->push_back(
          map_tensors(result, [&](const at::Tensor& tensor) { return aliases.to_device(tensor); }));
    }
  }
}

}  // namespace hpu_emulator

TORCH_LIBRARY_IMPL(c10d, HPU, library) {
  for (const char* name :
       {"allreduce_", "allreduce_coalesced_", "allgather_", "_allgather_base_",
        "allgather_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_",
        "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_", "broadcast_", "reduce_",
        "gather_", "scatter_", "alltoall_", "alltoall_base_", "barrier", "send", "recv_",
        "recv_any_source_"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&hpu_emulator::collective>());
  }
}
