// torch.autocast("hpu"): products take the chosen dtype.
#include <ATen/Operators.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

namespace at::autocast {
namespace {

TORCH_LIBRARY_IMPL(_, AutocastHPU, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastHPU, m) {
#define LOWER(...) KERNEL(c10::DeviceType::HPU, __VA_ARGS__, lower_precision_fp)
  LOWER(addmm)
  LOWER(baddbmm)
  LOWER(bmm)
  LOWER(linear)
  LOWER(matmul)
  LOWER(mm)
  LOWER(mv)
  LOWER(scaled_dot_product_attention)
#undef LOWER
}

}  // namespace
}  // namespace at::autocast
