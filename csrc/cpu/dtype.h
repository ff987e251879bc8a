// From torch's dtypes to the index of a kernel.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "cpu/kernels.h"

namespace vllm::cpu {

inline DType dtype_of(const at::Tensor& tensor, const char* argument) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return kFloat32;
    case at::kBFloat16:
      return kBFloat16;
    case at::kHalf:
      return kFloat16;
    default:
      TORCH_CHECK(false, argument, " must be float32, bfloat16 or float16, is ",
                  tensor.scalar_type());
  }
}

inline const char* bytes(const at::Tensor& tensor) {
  return static_cast<const char*>(tensor.const_data_ptr());
}

inline char* mutable_bytes(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.mutable_data_ptr());
}

}  // namespace vllm::cpu
