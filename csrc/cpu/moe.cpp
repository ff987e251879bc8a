// Mixture of experts: tokens sorted by expert, each expert run once over exactly its tokens.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
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

// What a choice is whose expert another rank has, and where it stands: nowhere.
constexpr int64_t kNotHere = -1;

// Choices (token * top_k + rank) of the C that have an expert here, in order of expert, stable, and
// where each expert's begin.
struct Order {
  std::vector<int64_t> choices;  // [C]
  std::vector<int64_t> places;   // [T * k]: where each choice stands, or kNotHere
  std::vector<int64_t> begin;    // [E + 1]
};

Order order_by_expert(const at::Tensor& topk_ids, int64_t num_experts) {
  const at::Tensor ids = topk_ids.to(at::kLong).contiguous();
  const int64_t* expert = ids.const_data_ptr<int64_t>();
  const int64_t count = ids.numel();
  Order order{{}, std::vector<int64_t>(count, kNotHere), std::vector<int64_t>(num_experts + 1, 0)};
  for (int64_t i = 0; i < count; ++i) {
    if (expert[i] == kNotHere) continue;
    TORCH_CHECK(0 <= expert[i] && expert[i] < num_experts, "topk_ids has ", expert[i],
                ", there are ", num_experts, " experts");
    ++order.begin[expert[i] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) order.begin[e + 1] += order.begin[e];
  order.choices.resize(order.begin.back());
  std::vector<int64_t> next(order.begin.begin(), order.begin.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    if (expert[i] == kNotHere) continue;
    order.places[i] = next[expert[i]]++;
    order.choices[order.places[i]] = i;
  }
  return order;
}

// Rows of x [T, H] as its choices stand, with packed_depth inputs: [C, depth].
at::Tensor rows_in_order(const at::Tensor& x, const Order& order, int64_t top_k) {
  const at::Tensor dense = rows_to_multiply(x);
  const int64_t count = static_cast<int64_t>(order.choices.size());
  const at::Tensor rows = at::empty({count, dense.size(1)}, x.options());
  const int64_t row_bytes = dense.size(1) * x.element_size();
  const int64_t stride = dense.stride(0) * x.element_size();
  const char* from = bytes(dense);
  char* to = mutable_bytes(rows);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, dense.size(1)));
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(to + i * row_bytes, from + order.choices[i] / top_k * stride, row_bytes);
    }
  });
  return rows;
}

// Each token's results [C, H] float32, which stand in order of expert, weighted and added in the
// order of its choices -> [T, H].
at::Tensor combine(const at::Tensor& results, const Order& order, const at::Tensor& topk_weights,
                   at::ScalarType to) {
  const int64_t num_tokens = topk_weights.size(0), top_k = topk_weights.size(1);
  const int64_t hidden = results.size(1);
  const at::Tensor weights = topk_weights.to(at::kFloat).contiguous();
  const at::Tensor out = at::empty({num_tokens, hidden}, results.options().dtype(to));
  const auto add_weighted = kernels().add_weighted[dtype_of(out, "out")];
  const float* from = results.const_data_ptr<float>();
  const float* weight = weights.const_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, top_k * hidden));
  parallel_for(0, num_tokens, grain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> places(top_k);
    std::vector<float> shares(top_k);
    for (int64_t t = begin; t < end; ++t) {
      int64_t here = 0;
      for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
        if (order.places[i] == kNotHere) continue;
        places[here] = order.places[i];
        shares[here++] = weight[i];
      }
      add_weighted({from, places.data(), shares.data(), here, hidden,
                    mutable_bytes(out) + t * hidden * out.element_size()});
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
  const Order order = order_by_expert(topk_ids, num_experts);
  const Gate gate = gate_named(act);
  VLLM_CHECK_SIZE(w13, 1, num_panels(intermediate, gate));
  VLLM_CHECK_SIZE(w2, 2, packed_depth(intermediate, dtype));
  const int64_t count = order.begin.back();
  const auto groups_of = [&](const at::Tensor& packed) {
    std::vector<WeightedRows> groups;
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t rows = order.begin[e + 1] - order.begin[e];
      const char* weight = bytes(packed) + e * packed.stride(0) * packed.element_size();
      if (rows > 0) groups.push_back({order.begin[e], rows, weight});
    }
    return groups;
  };
  const at::Tensor inner = at::empty({count, intermediate}, x.options());
  multiply_groups(rows_in_order(x, order, top_k), groups_of(w13), nullptr, gate, inner);
  const at::Tensor results = at::empty({count, hidden}, x.options().dtype(at::kFloat));
  multiply_groups(rows_to_multiply(inner), groups_of(w2), nullptr, Gate::kNone, results);
  return combine(results, order, topk_weights, x.scalar_type());
}

}  // namespace vllm::cpu
