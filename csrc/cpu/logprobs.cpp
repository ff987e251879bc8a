// Log-probabilities: of a given token and of the most likely ones, without a row of all of them.

#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "cpu/ops.h"
#include "cpu/sampling.h"

namespace vllm::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// log(sum(exp(logits - top))). By blocks, so that threads do not change its rounding.
float log_sum(const RowView& view, Scratch& scratch) {
  float* sums = scratch.sorted.data();
  const auto kernel = kernels().exp_sums;
  view.for_each_part([&](int64_t, int64_t begin, int64_t end) {
    kernel(view.logits, view.count, begin, end, view.top, sums);
  });
  return static_cast<float>(std::log(std::accumulate(sums, sums + view.blocks(), 0.0)));
}

// The k greatest, descending, into order[:k]; of equals the one with the least id first.
std::vector<int32_t> top_ids(const RowView& view, int64_t k, Scratch& scratch) {
  if (k == 0) return {};
  const float bound = bound_of_greatest(view, k, scratch);
  const ScaledRow row{view.logits, view.maxima, view.count, 1.0f, view.top, bound};
  int32_t* ids = scratch.ids.data();
  const int64_t found = kernels().collect(row, 0, view.blocks(), bound, ids, scratch.values.data());
  TORCH_INTERNAL_ASSERT(found >= k);
  const auto before = [&](int32_t a, int32_t b) {
    const float x = view.logits[a], y = view.logits[b];
    return x > y || (x == y && a < b);
  };
  std::partial_sort(ids, ids + k, ids + found, before);
  return {ids, ids + k};
}

// The chosen token's entry and k more.
struct Entries {
  int32_t* ids;
  float* logprobs;
};

int32_t explain(RowView& view, int32_t chosen, int64_t k, bool normalizes, Scratch& scratch,
                const Entries& out) {
  out.ids[0] = chosen;
  if (!find_maxima(view, scratch)) {
    std::fill_n(out.logprobs, 1 + k, -kInfinity);
    std::iota(out.ids + 1, out.ids + 1 + k, 0);
    return 1;
  }
  const float total = normalizes ? log_sum(view, scratch) : 0.0f;
  const auto value = [&](int32_t id) {
    const float x = view.logits[id];
    const float found = normalizes ? (x - view.top) - total : x;
    return std::isnan(found) ? -kInfinity : found;
  };
  out.logprobs[0] = value(chosen);
  const std::vector<int32_t> top = top_ids(view, k, scratch);
  for (int64_t i = 0; i < k; ++i) {
    out.ids[1 + i] = top[i];
    out.logprobs[1 + i] = value(top[i]);
  }
  const int64_t above = kernels().count_above(view.logits, view.maxima, view.count, 0,
                                              view.blocks(), view.logits[chosen]);
  return static_cast<int32_t>(1 + above);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> gather_logprobs(const at::Tensor& scores,
                                                               const at::Tensor& token_ids,
                                                               int64_t k, bool normalizes) {
  VLLM_CHECK_RANK(scores, 2);
  VLLM_CHECK_DTYPE(scores, at::kFloat);
  VLLM_CHECK_DENSE_ROWS(scores);
  VLLM_CHECK_RANK(token_ids, 1);
  VLLM_CHECK_DTYPE(token_ids, at::kInt);
  VLLM_CHECK_SIZE(token_ids, 0, scores.size(0));
  const int64_t rows = scores.size(0), vocab_size = scores.size(1);
  TORCH_CHECK(k >= 0 && k <= vocab_size, "k must be in [0, ", vocab_size, "], is ", k);
  const at::Tensor chosen = token_ids.contiguous();
  const int32_t* tokens = chosen.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK_INDEX(tokens[r] >= 0 && tokens[r] < vocab_size, "token ", tokens[r],
                      " is not in a vocabulary of ", vocab_size);
  }
  const at::Tensor ids = at::empty({rows, 1 + k}, token_ids.options());
  const at::Tensor logprobs = at::empty({rows, 1 + k}, scores.options());
  const at::Tensor ranks = at::empty({rows}, token_ids.options());
  int32_t* id = ids.mutable_data_ptr<int32_t>();
  float* logprob = logprobs.mutable_data_ptr<float>();
  int32_t* rank = ranks.mutable_data_ptr<int32_t>();
  for_each_row(scores, [&](int64_t r, RowView& view, Scratch& scratch) {
    const Entries out{id + r * (1 + k), logprob + r * (1 + k)};
    rank[r] = explain(view, tokens[r], k, normalizes, scratch, out);
  });
  return {ids, logprobs, ranks};
}

}  // namespace vllm::cpu
