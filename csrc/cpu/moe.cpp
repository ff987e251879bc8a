// Mixture of experts: tokens sorted by expert, each expert run once over exactly its tokens.

#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/ops.h"

namespace vllm::cpu {
namespace {

at::Tensor gated(const at::Tensor& x, const std::string& act) {
  if (act == "silu") return silu_and_mul(x);
  if (act == "gelu_tanh") return gelu_tanh_and_mul(x);
  TORCH_CHECK(act == "gelu", "act must be silu, gelu or gelu_tanh, is ", act);
  const int64_t half = x.size(-1) / 2;
  return at::gelu(x.narrow(-1, 0, half)).mul_(x.narrow(-1, half, half));
}

// Choices (token * top_k + rank) in order of expert, stable, and where each expert's begin.
struct Routing {
  at::Tensor choices;          // [T * k] int64
  std::vector<int64_t> begin;  // [E + 1]
};

Routing route(const at::Tensor& topk_ids, int64_t num_experts) {
  const at::Tensor ids = topk_ids.to(at::kLong).contiguous();
  const int64_t* expert = ids.const_data_ptr<int64_t>();
  const int64_t count = ids.numel();
  std::vector<int64_t> begin(num_experts + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(0 <= expert[i] && expert[i] < num_experts, "topk_ids has ", expert[i],
                ", there are ", num_experts, " experts");
    ++begin[expert[i] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) begin[e + 1] += begin[e];
  const at::Tensor choices = at::zeros({count}, at::kLong);
  int64_t* sorted = choices.mutable_data_ptr<int64_t>();
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t i = 0; i < count; ++i) sorted[next[expert[i]]++] = i;
  return {choices, std::move(begin)};
}

}  // namespace

at::Tensor moe(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
               const at::Tensor& topk_ids, const at::Tensor& topk_weights, const std::string& act) {
  VLLM_CHECK_RANK(x, 2);
  VLLM_CHECK_RANK(w13, 3);
  VLLM_CHECK_RANK(w2, 3);
  VLLM_CHECK_RANK(topk_ids, 2);
  const int64_t num_experts = w13.size(0), hidden = x.size(1);
  VLLM_CHECK_SIZE(w13, 2, hidden);
  VLLM_CHECK_SIZE(w2, 0, num_experts);
  VLLM_CHECK_SIZE(w2, 1, hidden);
  VLLM_CHECK_SIZE(w13, 1, 2 * w2.size(2));
  VLLM_CHECK_SIZE(topk_ids, 0, x.size(0));
  VLLM_CHECK_DTYPE(w13, x.scalar_type());
  VLLM_CHECK_DTYPE(w2, x.scalar_type());
  TORCH_CHECK(topk_weights.sizes() == topk_ids.sizes(), "topk_weights must have topk_ids' shape ",
              topk_ids.sizes(), ", has ", topk_weights.sizes());
  const Routing routing = route(topk_ids, num_experts);
  const at::Tensor tokens = routing.choices.floor_divide(topk_ids.size(1));
  const at::Tensor scale = topk_weights.reshape({-1}).index_select(0, routing.choices).unsqueeze(1);
  at::Tensor out = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t begin = routing.begin[e], count = routing.begin[e + 1] - begin;
    if (count == 0) continue;
    const at::Tensor own = tokens.narrow(0, begin, count);
    const at::Tensor inner = gated(at::linear(x.index_select(0, own), w13.select(0, e)), act);
    const at::Tensor result = at::linear(inner, w2.select(0, e)).mul(scale.narrow(0, begin, count));
    out.index_add_(0, own, result.to(at::kFloat));
  }
  return out.to(x.scalar_type());
}

}  // namespace vllm::cpu
