// Tensors without values, and views that need no kernel.
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "memory.h"

namespace hpu_emulator {
namespace {

const c10::DispatchKeySet kKeys(c10::DispatchKey::HPU);
constexpr int64_t kOne = 1;

at::ScalarType scalar_type(std::optional<at::ScalarType> dtype) {
  return dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
}

// Selects the device that is asked for while the allocator runs.
c10::DeviceIndex index_of(std::optional<c10::Device> device) {
  return device && device->has_index() ? device->index() : current_device();
}

class DeviceScope {
 public:
  explicit DeviceScope(std::optional<c10::Device> device) : before_(current_device()) {
    set_current_device(index_of(device));
  }
  ~DeviceScope() { set_current_device(before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  c10::DeviceIndex before_;
};

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<c10::Device> device,
                 std::optional<bool> pin_memory, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const DeviceScope scope(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), allocator(), kKeys,
                                   scalar_type(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<c10::Device> device, std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const DeviceScope scope(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), allocator(), kKeys,
                                           scalar_type(dtype));
}

// Grows the storage, keeping its values, when the new shape does not fit.
const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size,
                          std::optional<at::MemoryFormat> format) {
  const c10::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(size);
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->generic_set_sizes_contiguous(sizes);
  const size_t needed = (impl->numel() + impl->storage_offset()) * impl->itemsize();
  c10::StorageImpl* storage = self.storage().unsafeGetStorageImpl();
  if (impl->numel() > 0 && needed > storage->nbytes()) {
    TORCH_CHECK(storage->resizable(), "Trying to resize storage that is not resizable");
    const DeviceScope scope(self.device());
    c10::DataPtr grown = allocator()->allocate(needed);
    std::memcpy(grown.mutable_get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(grown));
    storage->set_nbytes(needed);
  }
  if (format) {
    TORCH_CHECK(*format != at::MemoryFormat::Preserve, "Unsupported memory format ", *format);
    impl->empty_tensor_restride(*format);
  }
  return self;
}

at::Tensor& set_source_storage(at::Tensor& self, at::Storage source) {
  const auto size = static_cast<int64_t>(source.nbytes() / self.itemsize());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(c10::IntArrayRef(size), c10::IntArrayRef(kOne),
                                                    0);
  return self;
}

at::Tensor& set_source_storage_offset(at::Tensor& self, at::Storage source, c10::SymInt offset,
                                      c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  const c10::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(size);
  TORCH_CHECK(source.device().type() == kHpu, "set_() needs an HPU storage, not ", source.device());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  std::vector<int64_t> strides(sizes.size(), 1);
  if (stride.empty()) {
    for (size_t i = sizes.size(); i-- > 1;) {
      strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
    }
  } else {
    strides = C10_AS_INTARRAYREF_SLOW(stride).vec();
  }
  self.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset.expect_int());
  return self;
}

at::Tensor& set_source_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_source_storage_offset(self, source.storage(), source.storage_offset(),
                                   source.sym_sizes(), source.sym_strides());
}

at::Tensor& set_nothing(at::Tensor& self) {
  const DeviceScope scope(self.device());
  c10::Storage empty(c10::Storage::use_byte_size_t(), 0, allocator()->allocate(0), allocator(),
                     true);
  return set_source_storage(self, std::move(empty));
}

bool is_pinned(const at::Tensor&, std::optional<c10::Device>) { return false; }

}  // namespace
}  // namespace hpu_emulator

TORCH_LIBRARY_IMPL(aten, HPU, library) {
  library.impl("empty.memory_format", &hpu_emulator::empty);
  library.impl("empty_strided", &hpu_emulator::empty_strided);
  library.impl("resize_", &hpu_emulator::resize_);
  library.impl("set_.source_Storage", &hpu_emulator::set_source_storage);
  library.impl("set_.source_Storage_storage_offset", &hpu_emulator::set_source_storage_offset);
  library.impl("set_.source_Tensor", &hpu_emulator::set_source_tensor);
  library.impl("set_", &hpu_emulator::set_nothing);
  library.impl("is_pinned", &hpu_emulator::is_pinned);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
}
