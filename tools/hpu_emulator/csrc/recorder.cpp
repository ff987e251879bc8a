#include "recorder.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>

#include <algorithm>

#include "alias.h"
#include "collectives.h"
#include "fallback.h"
#include "memory.h"
#include "recipes.h"
#include "timeline.h"

namespace hpu_emulator {
namespace {

using Stack = torch::jit::Stack;
using Kind = Recorded::Kind;

thread_local int captures = 0;

bool is_on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kHpu;
}

bool is_list_of_tensor_lists(const c10::IValue& value) {
  if (!value.isList()) {
    return false;
  }
  const auto items = value.toListRef();
  return !items.empty() && items[0].isTensorList();
}

// What an op reads of the host is as it was at the capture, like a number.
c10::IValue frozen(const c10::IValue& value) {
  if (value.isTensor() && value.toTensor().defined()) {
    const at::Tensor& tensor = value.toTensor();
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor copy = tensor.clone();
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      copy.unsafeGetTensorImpl()->set_wrapped_number(true);
    }
    return copy;
  }
  return value;
}

}  // namespace

bool is_capturing() { return captures > 0; }

int64_t TensorSpec::extent_bytes() const {
  int64_t last = offset;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) {
      return 0;
    }
    last += (sizes[i] - 1) * strides[i];
  }
  return (last + 1) * static_cast<int64_t>(dtype.itemsize());
}

Recorder::~Recorder() {
  // The device gives back what was charged even when the program ends in a capture.
  try {
    abort();
    reset();
  } catch (...) {
  }
}

void Recorder::begin(bool dry_run) {
  TORCH_CHECK(recipe_settings().lazy, "HPU graphs exist in lazy mode only (PT_HPU_LAZY_MODE=1)");
  TORCH_CHECK(!is_capturing(), "an HPU graph cannot be captured inside the capture of another");
  reset();
  flush();
  device_ = current_device();
  // What is allocated from here on belongs to the capture.
  close_workspace(device_);
  thread_ = std::this_thread::get_id();
  was_compile_only_ = recipe_settings().compile_only;
  recipe_settings().compile_only = was_compile_only_ || dry_run;
  is_capturing_ = true;
  ++captures;
  add_observer(this);
}

void Recorder::stop_observing() {
  is_capturing_ = false;
  --captures;
  remove_observer(this);
  recipe_settings().compile_only = was_compile_only_;
}

void Recorder::abort() {
  if (is_capturing_) {
    stop_observing();
    reset();
  }
}

void Recorder::end(bool keeps_all) {
  TORCH_CHECK(is_capturing_, "no capture has begun");
  try {
    flush();
    settle();
    const int64_t bytes = keeps_all ? total_bytes() : peak_bytes();
    charge_graph_memory(device_, bytes);
    charged_bytes_ = bytes;
  } catch (...) {
    abort();
    throw;
  }
  stop_observing();
  is_captured_ = true;
}

void Recorder::reset() {
  TORCH_CHECK(!is_capturing_, "the graph is being captured");
  if (charged_bytes_ > 0) {
    charge_graph_memory(device_, -charged_bytes_);
    charged_bytes_ = 0;
  }
  slots_.clear();
  slot_of_.clear();
  ops_.clear();
  recipes_.clear();
  inputs_.clear();
  is_captured_ = false;
}

bool Recorder::is_mine() const { return is_capturing_ && std::this_thread::get_id() == thread_; }

void Recorder::refuse(const std::string& what) const {
  TORCH_CHECK(!is_mine(), what,
              " is not supported during hpu graph capturing: a replay issues device ops "
              "only, so it would not be done again");
}

void Recorder::on_upload(const at::Tensor& device, const at::Tensor& host) {
  refuse("a copy from the host to the device (a new constant, or an input built in place)");
}

void Recorder::on_download(const at::Tensor& device, bool waits) { refuse("a copy to the host"); }

void Recorder::on_wait(const char* kind) {
  refuse(std::string("a host read or wait (") + kind + ")");
}

void Recorder::on_fallback(const c10::OperatorHandle& op) {
  refuse("an op that runs on the CPU (" + op.schema().name() + ")");
}

void Recorder::on_launch(const Launch& launch) {
  if (is_mine()) {
    recipes_.push_back(launch.recipe);
  }
}

int64_t Recorder::slot_of(const c10::Storage& storage, bool is_result) {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  const auto [found, is_new] = slot_of_.emplace(impl, static_cast<int64_t>(slots_.size()));
  if (is_new) {
    Slot slot{.captured = storage.getWeakStorageImpl()};
    const bool is_inside = is_result || is_of_open_graph(*impl);
    slot.kind = is_inside ? Slot::Kind::kInside : Slot::Kind::kOutside;
    slot.is_allocated_by_replay = is_inside && !is_result;
    // Memory of the capture is referred to weakly: what dies in it tells results from the rest.
    if (!is_inside) {
      slot.storage = storage;
    }
    slots_.push_back(std::move(slot));
  }
  return found->second;
}

TensorSpec Recorder::spec_of(const at::Tensor& tensor, int64_t slot) {
  TORCH_CHECK(tensor.device().index() == device_, "a graph of hpu:", int(device_),
              " cannot use a tensor of ", tensor.device());
  TensorSpec spec{slot,
                  tensor.dtype(),
                  tensor.sizes().vec(),
                  tensor.strides().vec(),
                  tensor.storage_offset(),
                  tensor.is_conj(),
                  tensor.is_neg()};
  Slot& memory = slots_[slot];
  memory.bytes = std::max(memory.bytes, static_cast<int64_t>(tensor.storage().nbytes()));
  memory.extent_bytes = std::max(memory.extent_bytes, spec.extent_bytes());
  memory.last_use = static_cast<int64_t>(ops_.size());
  return spec;
}

Recorded Recorder::record_argument(const c10::IValue& value) {
  Recorded recorded;
  if (value.isTensor() && is_on_device(value.toTensor())) {
    recorded.kind = Kind::kTensor;
    recorded.tensor = spec_of(value.toTensor(), slot_of(value.toTensor().storage(), false));
    return recorded;
  }
  const bool is_tensors = value.isTensorList();
  if (is_tensors || value.isOptionalTensorList() || is_list_of_tensor_lists(value)) {
    recorded.kind = is_tensors                     ? Kind::kTensors
                    : value.isOptionalTensorList() ? Kind::kOptionalTensors
                                                   : Kind::kTensorLists;
    for (const c10::IValue& item : value.toListRef()) {
      recorded.items.push_back(record_argument(item));
    }
    return recorded;
  }
  recorded.constant = frozen(value);
  return recorded;
}

Recorded Recorder::record_result(const c10::IValue& value, std::vector<int64_t>& made) {
  Recorded recorded;
  if (value.isTensorList()) {
    recorded.kind = Kind::kTensors;
    for (const c10::IValue& item : value.toListRef()) {
      recorded.items.push_back(record_result(item, made));
    }
  } else if (value.isTensor() && is_on_device(value.toTensor())) {
    const c10::Storage& storage = value.toTensor().storage();
    const bool is_known = slot_of_.count(storage.unsafeGetStorageImpl()) > 0;
    const int64_t slot = slot_of(storage, true);
    if (!is_known) {
      made.push_back(slot);
    }
    if (std::find(made.begin(), made.end(), slot) != made.end()) {
      recorded.kind = Kind::kTensor;
      recorded.tensor = spec_of(value.toTensor(), slot);
    }
  }
  return recorded;
}

void Recorder::on_op(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
                     c10::ArrayRef<c10::IValue> results) {
  if (!is_mine()) {
    return;
  }
  RecordedOp recorded{op, is_collective(op)};
  const size_t num_slots = slots_.size();
  for (const c10::IValue& argument : arguments) {
    recorded.arguments.push_back(record_argument(argument));
  }
  for (size_t i = num_slots; i < slots_.size(); ++i) {
    if (slots_[i].is_allocated_by_replay) {
      recorded.allocates.push_back(static_cast<int64_t>(i));
    }
  }
  std::vector<int64_t> made;
  for (const c10::IValue& result : results) {
    recorded.results.push_back(record_result(result, made));
  }
  ops_.push_back(std::move(recorded));
}

// Tells the results of the graph from its intermediates, which end with their last use.
void Recorder::settle() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.kind == Slot::Kind::kInside) {
      if (auto alive = slot.captured.lock()) {
        slot.kind = Slot::Kind::kResult;
        slot.storage = c10::Storage(std::move(alive));
      } else {
        ops_[slot.last_use].frees.push_back(static_cast<int64_t>(i));
      }
    }
  }
}

int64_t Recorder::peak_bytes() const {
  std::vector<bool> is_alive(slots_.size(), false);
  int64_t now = 0;
  int64_t peak = 0;
  const auto take = [&](int64_t slot) {
    if (slots_[slot].kind == Slot::Kind::kInside && !is_alive[slot]) {
      is_alive[slot] = true;
      now += slots_[slot].bytes;
    }
  };
  const auto visit = [&](const auto& self, const Recorded& value) -> void {
    if (value.kind == Kind::kTensor) {
      take(value.tensor.slot);
    }
    for (const Recorded& item : value.items) {
      self(self, item);
    }
  };
  for (const RecordedOp& op : ops_) {
    for (const Recorded& argument : op.arguments) {
      visit(visit, argument);
    }
    for (const Recorded& result : op.results) {
      visit(visit, result);
    }
    peak = std::max(peak, now);
    for (const int64_t slot : op.frees) {
      now -= slots_[slot].bytes;
    }
  }
  return peak;
}

int64_t Recorder::total_bytes() const {
  int64_t total = 0;
  for (const Slot& slot : slots_) {
    total += slot.kind == Slot::Kind::kInside ? slot.bytes : 0;
  }
  return total;
}

void Recorder::set_inputs(std::vector<at::Tensor> inputs) {
  TORCH_CHECK(is_captured_, "the inputs of a graph are known once it has been captured");
  inputs_.clear();
  for (const at::Tensor& tensor : inputs) {
    Input input;
    if (is_on_device(tensor)) {
      const auto found = slot_of_.find(tensor.storage().unsafeGetStorageImpl());
      input.is_used = found != slot_of_.end();
      input.spec.slot = input.is_used ? found->second : -1;
      input.spec.offset = tensor.storage_offset();
    }
    inputs_.push_back(std::move(input));
  }
}

void Recorder::bind(const std::vector<at::Tensor>& inputs) {
  TORCH_CHECK(inputs.size() == inputs_.size(), "the graph was captured with ", inputs_.size(),
              " inputs, not ", inputs.size());
  std::unordered_map<int64_t, c10::Storage> bound;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Input& input = inputs_[i];
    if (!input.is_used) {
      continue;
    }
    TORCH_CHECK(is_on_device(inputs[i]), "input ", i, " of the graph must be on the device");
    const c10::Storage& storage = inputs[i].storage();
    TORCH_CHECK(inputs[i].storage_offset() == input.spec.offset, "input ", i,
                " of the graph has offset ", inputs[i].storage_offset(), ", captured was ",
                input.spec.offset);
    TORCH_CHECK(static_cast<int64_t>(storage.nbytes()) >= slots_[input.spec.slot].extent_bytes,
                "input ", i, " of the graph has ", storage.nbytes(),
                " bytes where the captured graph reads ", slots_[input.spec.slot].extent_bytes,
                ": its dtype is not the one that was captured");
    const auto [found, is_new] = bound.emplace(input.spec.slot, storage);
    TORCH_CHECK(
        is_new || found->second.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl(), "input ",
        i, " shared its memory with another input when the graph was captured, and does not now");
  }
  for (auto& [slot, storage] : bound) {
    slots_[slot].storage = std::move(storage);
  }
}

void Recorder::drop_inputs() {
  for (const Input& input : inputs_) {
    if (input.is_used) {
      slots_[input.spec.slot].storage = c10::Storage();
    }
  }
}

std::vector<int64_t> Recorder::used_inputs() const {
  std::vector<int64_t> used;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i].is_used) {
      used.push_back(static_cast<int64_t>(i));
    }
  }
  return used;
}

at::Tensor Recorder::tensor_of(const TensorSpec& spec) const {
  const Slot& slot = slots_[spec.slot];
  TORCH_CHECK(slot.storage, "an input of the graph was cleared: replay it with new inputs");
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      c10::Storage(slot.storage), c10::DispatchKeySet(c10::DispatchKey::HPU), spec.dtype);
  impl->set_sizes_and_strides(spec.sizes, spec.strides, spec.offset);
  at::Tensor tensor(std::move(impl));
  if (spec.is_conj) {
    tensor._set_conj(true);
  }
  if (spec.is_neg) {
    tensor._set_neg(true);
  }
  return tensor;
}

c10::IValue Recorder::value_of(const Recorded& recorded) const {
  switch (recorded.kind) {
    case Kind::kConstant:
      return recorded.constant;
    case Kind::kTensor:
      return tensor_of(recorded.tensor);
    case Kind::kTensors: {
      c10::List<at::Tensor> tensors;
      for (const Recorded& item : recorded.items) {
        tensors.push_back(value_of(item).toTensor());
      }
      return tensors;
    }
    case Kind::kOptionalTensors: {
      c10::List<std::optional<at::Tensor>> tensors;
      for (const Recorded& item : recorded.items) {
        const c10::IValue value = value_of(item);
        tensors.push_back(value.isTensor() ? std::make_optional(value.toTensor()) : std::nullopt);
      }
      return tensors;
    }
    case Kind::kTensorLists: {
      c10::List<c10::List<at::Tensor>> lists;
      for (const Recorded& item : recorded.items) {
        lists.push_back(value_of(item).toTensorList());
      }
      return lists;
    }
  }
  TORCH_CHECK(false, "not reached");
}

// Puts what an op made where the graph has it.
void Recorder::store(const Recorded& recorded, const c10::IValue& result) {
  if (recorded.kind == Kind::kTensors) {
    const auto items = result.toListRef();
    for (size_t i = 0; i < recorded.items.size(); ++i) {
      store(recorded.items[i], items[i]);
    }
    return;
  }
  if (recorded.kind != Kind::kTensor) {
    return;
  }
  const TensorSpec& spec = recorded.tensor;
  Slot& slot = slots_[spec.slot];
  at::Tensor made = result.toTensor();
  TORCH_CHECK(made.sizes() == spec.sizes && made.dtype() == spec.dtype,
              "a replayed op gave another shape than at the capture");
  if (made.strides() != spec.strides || made.storage_offset() != spec.offset ||
      static_cast<int64_t>(made.storage().nbytes()) < slot.extent_bytes) {
    // What a dry run foresees may be laid out in another way than what an op gives.
    if (!slot.storage) {
      slot.storage =
          c10::Storage(c10::Storage::use_byte_size_t(), slot.bytes,
                       allocator()->allocate(slot.bytes), allocator(), /*resizable=*/true);
    }
    Aliases aliases(device_);
    const at::AutoDispatchBelowADInplaceOrView guard;
    aliases.to_host(tensor_of(spec)).copy_(aliases.to_host(made));
  } else if (slot.kind == Slot::Kind::kResult) {
    // Tensors that the program holds stay on their storage, which gets the new memory.
    c10::StorageImpl* fresh = made.storage().unsafeGetStorageImpl();
    c10::StorageImpl* kept = slot.storage.unsafeGetStorageImpl();
    if (fresh != kept) {
      kept->set_data_ptr_noswap(fresh->set_data_ptr(c10::DataPtr(nullptr, made.device())));
    }
  } else {
    slot.storage = made.storage();
  }
}

void Recorder::run(RecordedOp& op, Stack& stack) {
  for (const int64_t i : op.allocates) {
    Slot& slot = slots_[i];
    if (slot.kind == Slot::Kind::kInside) {
      slot.storage =
          c10::Storage(c10::Storage::use_byte_size_t(), slot.bytes,
                       allocator()->allocate(slot.bytes), allocator(), /*resizable=*/true);
    }
  }
  stack.clear();
  for (const Recorded& argument : op.arguments) {
    stack.push_back(value_of(argument));
  }
  if (op.is_collective) {
    execute_collective(op.op, &stack);
  } else {
    execute(op.op, &stack);
  }
  for (size_t i = 0; i < op.results.size(); ++i) {
    store(op.results[i], stack[i]);
  }
  for (const int64_t i : op.frees) {
    slots_[i].storage = c10::Storage();
  }
}

void Recorder::replay() {
  TORCH_CHECK(is_captured_, "the graph has not been captured");
  TORCH_CHECK(!is_capturing(), "an HPU graph cannot be replayed inside the capture of another");
  flush();
  if (recipe_settings().compile_only) {
    return;
  }
  note_start();
  Stack stack;
  for (RecordedOp& op : ops_) {
    run(op, stack);
  }
  stack.clear();
  close_workspace(device_);
  for (const int64_t recipe : recipes_) {
    count_launch(recipe);
  }
}

}  // namespace hpu_emulator
