// CPU views of the memory of HPU tensors, for the time of one op.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/SmallVector.h>

namespace hpu_emulator {

// Arguments of one op as the CPU sees them, and its results as the HPU sees them.
class Aliases {
 public:
  explicit Aliases(c10::DeviceIndex device) : device_(device) {}

  // `value` with every HPU tensor in it replaced by a CPU tensor on the same memory.
  c10::IValue to_host(const c10::IValue& value);
  at::Tensor to_host(const at::Tensor& tensor);
  // The reverse, for a result: an argument comes back as the caller's own tensor, a view of an
  // argument as a view of the caller's, anything else becomes memory of the device.
  c10::IValue to_device(const c10::IValue& value);
  at::Tensor to_device(const at::Tensor& tensor);
  // Storages that the op had to reallocate are given to the device's tensors, as are the shapes
  // of tensors that it reshaped in place.
  void sync_arguments();

 private:
  struct Shared {
    c10::Storage device;
    c10::Storage host;
    const void* data;
  };
  struct Argument {
    at::Tensor device;
    at::Tensor host;
  };

  const c10::Storage& share(const at::Tensor& tensor);

  c10::DeviceIndex device_;
  c10::SmallVector<Shared, 6> shared_;
  c10::SmallVector<Argument, 6> arguments_;
};

// A tensor on the storage of another device's tensor, with the shape of `like`.
at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like, c10::DispatchKey key);

}  // namespace hpu_emulator
