#include "alias.h"

#include <ATen/core/List.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/TensorImpl.h>

#include "memory.h"

namespace hpu_emulator {

at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like, c10::DispatchKey key) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key),
                                                   like.dtype());
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  at::Tensor tensor(std::move(impl));
  if (like.is_conj()) {
    tensor._set_conj(true);
  }
  if (like.is_neg()) {
    tensor._set_neg(true);
  }
  return tensor;
}

const c10::Storage& Aliases::share(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  for (const Shared& shared : shared_) {
    if (shared.device.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) {
      return shared.host;
    }
  }
  // A null host storage may still be resized by the op, so it has an allocator.
  void* data = storage.mutable_data();
  c10::Storage host(c10::Storage::use_byte_size_t(), storage.nbytes(),
                    c10::DataPtr(data, c10::Device(c10::kCPU)), c10::GetCPUAllocator(),
                    /*resizable=*/true);
  shared_.push_back({storage, std::move(host), data});
  return shared_.back().host;
}

at::Tensor Aliases::to_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kHpu) {
    return tensor;
  }
  for (const Argument& argument : arguments_) {
    if (argument.device.is_same(tensor)) {
      return argument.host;
    }
  }
  at::Tensor host = tensor_on(share(tensor), tensor, c10::DispatchKey::CPU);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    host.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  arguments_.push_back({tensor, host});
  return host;
}

c10::IValue Aliases::to_host(const c10::IValue& value) {
  if (value.isTensor()) {
    return to_host(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> host;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      host.push_back(to_host(tensor));
    }
    return host;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> host;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      host.push_back(tensor.has_value() ? std::make_optional(to_host(*tensor)) : std::nullopt);
    }
    return host;
  }
  if (value.isDevice() && value.toDevice().type() == kHpu) {
    return c10::Device(c10::kCPU);
  }
  return value;
}

at::Tensor Aliases::to_device(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_cpu()) {
    return tensor;
  }
  for (const Argument& argument : arguments_) {
    if (argument.host.is_same(tensor)) {
      return argument.device;
    }
  }
  for (const Shared& shared : shared_) {
    if (shared.host.unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl()) {
      return tensor_on(shared.device, tensor, c10::DispatchKey::HPU);
    }
  }
  const c10::Storage& host = tensor.storage();
  const size_t bytes = host.nbytes();
  c10::Storage device(c10::Storage::use_byte_size_t(), bytes, adopt(host, device_), allocator(),
                      /*resizable=*/true);
  shared_.push_back({device, host, host.data()});
  return tensor_on(std::move(device), tensor, c10::DispatchKey::HPU);
}

c10::IValue Aliases::to_device(const c10::IValue& value) {
  if (value.isTensor()) {
    return to_device(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> device;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      device.push_back(to_device(tensor));
    }
    return device;
  }
  return value;
}

void Aliases::sync_arguments() {
  for (Shared& shared : shared_) {
    if (shared.host.data() != shared.data) {
      c10::StorageImpl* storage = shared.device.unsafeGetStorageImpl();
      storage->set_data_ptr_noswap(adopt(shared.host, device_));
      storage->set_nbytes(shared.host.nbytes());
    }
  }
  for (const Argument& argument : arguments_) {
    const at::Tensor& host = argument.host;
    c10::TensorImpl* impl = argument.device.unsafeGetTensorImpl();
    if (impl->sizes() != host.sizes() || impl->strides() != host.strides() ||
        impl->storage_offset() != host.storage_offset()) {
      impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }
}

}  // namespace hpu_emulator
