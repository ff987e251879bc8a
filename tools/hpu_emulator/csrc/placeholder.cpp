#include "placeholder.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "alias.h"
#include "fallback.h"
#include "memory.h"

namespace hpu_emulator {
namespace {

using Stack = torch::jit::Stack;

void fill_with_garbage(const at::Tensor& device) {
  Aliases aliases(device.device().index());
  const at::Tensor host = aliases.to_host(device);
  if (host.is_floating_point() || host.is_complex()) {
    host.fill_(std::numeric_limits<double>::quiet_NaN());
  } else {
    host.fill_(host.scalar_type() == at::kBool ? 1 : 0x5A);
  }
}

at::Tensor to_meta(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kHpu) {
    return tensor;
  }
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
                       c10::DataPtr(nullptr, c10::Device(c10::kMeta)),
                       c10::GetAllocator(c10::kMeta), true);
  return tensor_on(std::move(storage), tensor, c10::DispatchKey::Meta);
}

c10::IValue to_meta(const c10::IValue& value) {
  if (value.isTensor()) {
    return to_meta(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> meta;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      meta.push_back(to_meta(tensor));
    }
    return meta;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> meta;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      meta.push_back(tensor.has_value() ? std::make_optional(to_meta(*tensor)) : std::nullopt);
    }
    return meta;
  }
  if (value.isDevice() && value.toDevice().type() == kHpu) {
    return c10::Device(c10::kMeta);
  }
  return value;
}

// Every result is one of the arguments: those, in order.
bool returns_arguments(const c10::OperatorHandle& op, std::vector<int>& order) {
  const c10::FunctionSchema& schema = op.schema();
  for (const c10::Argument& result : schema.returns()) {
    if (result.alias_info() == nullptr) {
      return false;
    }
    int found = -1;
    for (size_t i = 0; i < schema.arguments().size(); ++i) {
      const c10::AliasInfo* info = schema.arguments()[i].alias_info();
      if (info != nullptr && *info == *result.alias_info()) {
        found = static_cast<int>(i);
      }
    }
    if (found < 0) {
      return false;
    }
    order.push_back(found);
  }
  return true;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Ops in place arrive as `op.out` with their own input as what they write to.
bool is_read(c10::ArrayRef<c10::IValue> given, size_t written) {
  const auto& storage = given[written].toTensor().storage();
  for (size_t i = 0; i < given.size(); ++i) {
    if (i != written && given[i].isTensor() && given[i].toTensor().defined() &&
        given[i].toTensor().storage().is_alias_of(storage)) {
      return true;
    }
  }
  return false;
}

// Gives what `out=` names the shape of the result, as running the op would.
void resize_outputs(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> given,
                    const std::vector<int>& order) {
  if (!op.hasKernelForDispatchKey(c10::DispatchKey::Meta)) {
    return;
  }
  Stack meta;
  for (const c10::IValue& argument : given) {
    meta.push_back(to_meta(argument));
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &meta);
  for (size_t i = 0; i < order.size(); ++i) {
    if (meta[i].isTensor() && given[order[i]].isTensor()) {
      const at::Tensor& out = given[order[i]].toTensor();
      if (out.sizes() != meta[i].toTensor().sizes()) {
        out.resize_(meta[i].toTensor().sizes());
      }
    }
  }
}

at::Tensor garbage_like(const at::Tensor& meta, c10::DeviceIndex index) {
  const at::Tensor device = at::detail::empty_strided_generic(
      meta.sizes(), meta.strides(), allocator(), c10::DispatchKeySet(c10::DispatchKey::HPU),
      meta.scalar_type());
  fill_with_garbage(device);
  return device;
}

c10::IValue garbage_like(const c10::IValue& value, c10::DeviceIndex index) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? garbage_like(value.toTensor(), index) : at::Tensor();
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> device;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      device.push_back(garbage_like(tensor, index));
    }
    return device;
  }
  return value;
}

}  // namespace

bool make_placeholders(const c10::OperatorHandle& op, const OpInfo& info, Stack* stack) {
  const size_t num_arguments = info.arguments.size();
  const auto given = torch::jit::last(*stack, num_arguments);
  const c10::DeviceIndex device = check_devices(info, given);
  const at::AutoDispatchBelowADInplaceOrView guard;
  std::vector<int> order;
  Stack results;
  if (returns_arguments(op, order)) {
    if (!ends_with(op.schema().name(), "_")) {
      resize_outputs(op, given, order);
    }
    for (const int i : order) {
      // What `out=` names is a result; what is changed in place is memory that others rely on.
      if (given[i].isTensor() && !ends_with(op.schema().name(), "_") && !is_read(given, i)) {
        fill_with_garbage(given[i].toTensor());
      }
      results.push_back(given[i]);
    }
  } else {
    if (info.waits || !op.hasKernelForDispatchKey(c10::DispatchKey::Meta)) {
      return false;
    }
    Stack meta;
    for (const c10::IValue& argument : given) {
      meta.push_back(to_meta(argument));
    }
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &meta);
    for (const c10::IValue& result : meta) {
      results.push_back(garbage_like(result, device));
    }
  }
  torch::jit::drop(*stack, num_arguments);
  stack->insert(stack->end(), results.begin(), results.end());
  return true;
}

}  // namespace hpu_emulator
