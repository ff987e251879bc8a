// Mixture of experts: tokens sorted by expert, each expert run once over exactly its tokens.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/gemm.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Elements a thread should at least have: below, waking it costs more than the work.
constexpr int64_t kGrain = 16 * 1024;

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

// [T, H] float32: each token's results [T * k, H], which stand in order of expert, weighted and
// added in the order of its choices.
at::Tensor combine(const at::Tensor& results, const Routing& routing,
                   const at::Tensor& topk_weights) {
  const int64_t num_tokens = topk_weights.size(0), top_k = topk_weights.size(1);
  const int64_t hidden = results.size(1);
  std::vector<int64_t> place(num_tokens * top_k);
  const int64_t* choices = routing.choices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_tokens * top_k; ++i) place[choices[i]] = i;
  const at::Tensor scale = topk_weights.to(at::kFloat).contiguous();
  const at::Tensor out = at::empty({num_tokens, hidden}, results.options());
  const float* from = results.const_data_ptr<float>();
  const float* weights = scale.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, top_k * hidden));
  parallel_for(0, num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = to + t * hidden;
      std::fill_n(sum, hidden, 0.0f);
      for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
        const float* result = from + place[i] * hidden;
        for (int64_t h = 0; h < hidden; ++h) sum[h] += weights[i] * result[h];
      }
    }
  });
  return out;
}

}  // namespace

at::Tensor packed_moe(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                      const at::Tensor& topk_ids, const at::Tensor& topk_weights,
                      int64_t intermediate, const std::string& act) {
  VLLM_CHECK_RANK(x, 2);
  VLLM_CHECK_RANK(w13, 4);
  VLLM_CHECK_RANK(w2, 4);
  VLLM_CHECK_RANK(topk_ids, 2);
  VLLM_CHECK_DTYPE(w13, x.scalar_type());
  VLLM_CHECK_DTYPE(w2, x.scalar_type());
  VLLM_CHECK_CONTIGUOUS(w13);
  VLLM_CHECK_CONTIGUOUS(w2);
  const DType dtype = dtype_of(x, "x");
  const int64_t num_experts = w13.size(0), hidden = x.size(1), top_k = topk_ids.size(1);
  VLLM_CHECK_SIZE(w2, 0, num_experts);
  VLLM_CHECK_SIZE(w2, 1, num_panels(hidden));
  VLLM_CHECK_SIZE(w13, 2, packed_depth(hidden, dtype));
  VLLM_CHECK_SIZE(topk_ids, 0, x.size(0));
  TORCH_CHECK(topk_weights.sizes() == topk_ids.sizes(), "topk_weights must have topk_ids' shape ",
              topk_ids.sizes(), ", has ", topk_weights.sizes());
  const Routing routing = route(topk_ids, num_experts);
  const Gate gate = gate_named(act);
  VLLM_CHECK_SIZE(w13, 1, num_panels(intermediate, gate));
  VLLM_CHECK_SIZE(w2, 2, packed_depth(intermediate, dtype));
  const int64_t count = topk_ids.numel();
  const auto groups_of = [&](const at::Tensor& packed) {
    std::vector<WeightedRows> groups;
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t rows = routing.begin[e + 1] - routing.begin[e];
      const char* weight = bytes(packed) + e * packed.stride(0) * packed.element_size();
      if (rows > 0) groups.push_back({routing.begin[e], rows, weight});
    }
    return groups;
  };
  const at::Tensor own = x.index_select(0, routing.choices.floor_divide(top_k));
  const at::Tensor inner = at::empty({count, intermediate}, x.options());
  multiply_groups(rows_to_multiply(own), groups_of(w13), nullptr, gate, inner);
  const at::Tensor results = at::empty({count, hidden}, x.options().dtype(at::kFloat));
  multiply_groups(rows_to_multiply(inner), groups_of(w2), nullptr, Gate::kNone, results);
  return combine(results, routing, topk_weights).to(x.scalar_type());
}

}  // namespace vllm::cpu
