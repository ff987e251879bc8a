// Attention of plain PyTorch is composed of ops: the device's fused kernels are ops of their own.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

namespace hpu_emulator {
namespace {

int64_t choose_backend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const std::optional<at::Tensor>& mask, double dropout_p, bool is_causal,
                       std::optional<double> scale, bool enable_gqa) {
  return 0;  // the backend that is composed of ops
}

}  // namespace
}  // namespace hpu_emulator

TORCH_LIBRARY_IMPL(aten, HPU, library) {
  library.impl("_fused_sdp_choice", &hpu_emulator::choose_backend);
}
