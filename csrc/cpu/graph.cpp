#include "cpu/graph.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

namespace vllm::cpu {
namespace {

thread_local Graph* capturing = nullptr;

bool is_same(const at::Tensor& a, const at::Tensor& b) {
  return a.is_alias_of(b) && a.storage_offset() == b.storage_offset() && a.dtype() == b.dtype() &&
         a.sizes() == b.sizes() && a.strides() == b.strides();
}

// Whether sizes of the results follow from values, as those of nonzero: what the captured code does
// with such sizes is not seen.
bool has_sizes_of_values(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> inputs) {
  if (!op.hasTag(at::Tag::dynamic_output_shape)) return false;
  if (op.schema().name() != "aten::index") return true;
  // An index of numbers has its size; a mask does not.
  for (const c10::IValue& index : inputs[1].toListRef()) {
    if (!index.isTensor() || !index.toTensor().defined()) continue;
    const at::ScalarType dtype = index.toTensor().scalar_type();
    if (dtype == at::kBool || dtype == at::kByte) return true;
  }
  return false;
}

}  // namespace

Graph::Graph(std::vector<at::Tensor> inputs, const std::vector<at::Tensor>& constants)
    : num_inputs_(inputs.size()), alive_(std::move(inputs)) {
  TORCH_CHECK(!capturing, "this thread captures a graph already");
  for (const at::Tensor& tensor : constants) constants_.insert(tensor.unsafeGetTensorImpl());
  for (const at::Tensor& tensor : alive_) number(tensor);
  capturing = this;
  captures_ = true;
  callback_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&on_start, &on_end)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
}

Graph::~Graph() { stop(); }

void Graph::stop() {
  if (!captures_) return;
  at::removeCallback(callback_);
  capturing = nullptr;
  captures_ = false;
}

void Graph::refuse(const std::string& reason) {
  if (reason_.empty()) reason_ = reason;
}

std::unique_ptr<at::ObserverContext> Graph::on_start(const at::RecordFunction& function) {
  Graph& self = *capturing;
  if (!function.operator_name()) return nullptr;  // names that profiles show are no ops
  const bool is_inner = self.depth_++ > 0;
  if (!self.reason_.empty()) return nullptr;
  const auto op = c10::Dispatcher::singleton().findSchema(*function.operator_name());
  if (!op) {
    if (!is_inner) self.refuse("no such op: " + std::string(function.name()));
    return nullptr;
  }
  if (has_sizes_of_values(*op, function.inputs())) {
    self.refuse(std::string(function.name()) + " gives a tensor whose size depends on values");
  }
  if (is_inner) return nullptr;  // what ops call in turn, a replay of them calls again
  // What torch.tensor() calls with memory that no op filled.
  if (function.operator_name()->name == "aten::lift_fresh") {
    self.refuse("values of Python become a tensor");
  }
  Call call{*op, {}, {}, {}};
  for (const c10::IValue& value : function.inputs()) {
    call.arguments.push_back(self.argument(value, function.name()));
  }
  self.calls_.push_back(std::move(call));
  return nullptr;
}

void Graph::on_end(const at::RecordFunction& function, at::ObserverContext*) {
  Graph& self = *capturing;
  if (!function.operator_name() || --self.depth_ > 0 || !self.reason_.empty()) return;
  for (const c10::IValue& value : function.outputs()) {
    self.calls_.back().results.push_back(self.result(value, function.name()));
  }
}

int Graph::number(const at::Tensor& tensor) {
  numbers_[tensor.unsafeGetTensorImpl()] = count_;
  return count_++;
}

int Graph::find(const at::Tensor& tensor) const {
  const auto known = numbers_.find(tensor.unsafeGetTensorImpl());
  if (known != numbers_.end()) return known->second;
  // Python's factories, such as zeros_like, hand out a second tensor of what their op made.
  const auto twin = std::find_if(alive_.rbegin(), alive_.rend(),
                                 [&](const at::Tensor& made) { return is_same(made, tensor); });
  return twin == alive_.rend() ? -1 : numbers_.at(twin->unsafeGetTensorImpl());
}

Graph::Argument Graph::argument(const c10::IValue& value, const std::string& op) {
  Argument argument;
  if (value.isTensor() && value.toTensor().defined()) {
    const at::Tensor& tensor = value.toTensor();
    const bool is_number = tensor.unsafeGetTensorImpl()->is_wrapped_number();
    if (!is_number && !constants_.count(tensor.unsafeGetTensorImpl())) {
      argument.number = find(tensor);
      if (argument.number < 0) refuse(op + " takes a tensor that no op made");
      return argument;
    }
  } else if (value.isList()) {
    const auto list = value.toList();
    for (size_t i = 0; i < list.size(); ++i) {
      argument.elements.push_back(this->argument(list.get(i), op));
    }
    argument.is_list =
        std::any_of(argument.elements.begin(), argument.elements.end(),
                    [](const Argument& element) { return element.is_list || element.number >= 0; });
    if (argument.is_list) {
      argument.constant = c10::impl::GenericList(list.elementType());
      return argument;
    }
    argument.elements.clear();
  }
  argument.constant = value;
  return argument;
}

Graph::Result Graph::result(const c10::IValue& value, const std::string& op) {
  Result result;
  const auto add = [&](const at::Tensor& tensor) {
    alive_.push_back(tensor);
    result.numbers.push_back(number(tensor));
  };
  if (value.isTensor() && value.toTensor().defined()) {
    add(value.toTensor());
  } else if (value.isTensorList()) {
    result.is_list = true;
    for (const at::Tensor& tensor : value.toTensorVector()) add(tensor);
  } else {
    refuse(op + " gives something else than tensors");
  }
  return result;
}

std::string Graph::end(const at::Tensor& output) {
  stop();
  output_ = find(output);
  if (output_ < 0) refuse("no op made the output");
  if (reason_.empty()) {
    find_last_uses();
    values_.resize(count_);
  } else {
    output_ = -1;
    calls_.clear();
  }
  numbers_.clear();
  constants_.clear();
  alive_.clear();
  return reason_;
}

void Graph::find_last_uses() {
  std::vector<bool> is_used(count_, false);
  is_used[output_] = true;
  for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
    const auto use = [&](int number) {
      if (is_used[number]) return;
      is_used[number] = true;
      call->unused_after.push_back(number);
    };
    for (const Result& result : call->results) {
      for (int number : result.numbers) use(number);
    }
    for (const Argument& argument : call->arguments) {
      if (argument.number >= 0) use(argument.number);
      for (const Argument& element : argument.elements) {
        if (element.number >= 0) use(element.number);
      }
    }
  }
}

c10::IValue Graph::value_of(const Argument& argument) const {
  if (argument.number >= 0) return values_[argument.number];
  if (!argument.is_list) return argument.constant;
  auto list = argument.constant.toList().copy();
  for (const Argument& element : argument.elements) list.push_back(value_of(element));
  return list;
}

void Graph::keep(const Result& result, c10::IValue value) {
  if (!result.is_list) {
    values_[result.numbers[0]] = std::move(value).toTensor();
    return;
  }
  const auto tensors = value.toTensorVector();
  for (size_t i = 0; i < result.numbers.size(); ++i) values_[result.numbers[i]] = tensors[i];
}

at::Tensor Graph::replay(const std::vector<at::Tensor>& inputs) {
  TORCH_CHECK(output_ >= 0, "this graph was not captured: ", reason_);
  TORCH_CHECK(inputs.size() == num_inputs_, "a graph of ", num_inputs_, " inputs was given ",
              inputs.size());
  std::copy(inputs.begin(), inputs.end(), values_.begin());
  torch::jit::Stack stack;
  for (const Call& call : calls_) {
    for (const Argument& argument : call.arguments) stack.push_back(value_of(argument));
    call.op.callBoxed(stack);
    for (size_t i = 0; i < call.results.size(); ++i) keep(call.results[i], std::move(stack[i]));
    stack.clear();
    for (int number : call.unused_after) values_[number] = at::Tensor();
  }
  at::Tensor output = std::move(values_[output_]);
  for (size_t i = 0; i < inputs.size(); ++i) values_[i] = at::Tensor();
  return output;
}

}  // namespace vllm::cpu
