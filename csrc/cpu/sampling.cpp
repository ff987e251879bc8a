// What grammars forbid: a bit per token.

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "common/check.h"
#include "cpu/ops.h"

namespace vllm::cpu {
namespace {

// Words a thread should at least have.
constexpr int64_t kGrainWords = 16 * 1024;
constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Most words of a grammar's mask are all zeros, or, inside free text, all ones.
void mask_row(float* logits, const uint32_t* mask, int64_t vocab_size) {
  for (int64_t begin = 0; begin < vocab_size; begin += 32) {
    const uint32_t word = mask[begin / 32];
    const int64_t end = std::min<int64_t>(begin + 32, vocab_size);
    if (word == 0) {
      std::fill(logits + begin, logits + end, kForbidden);
    } else if (word != ~uint32_t{0}) {
      // Without a branch per token, which a compiler can turn into vector selects.
      for (int64_t t = begin; t < end; ++t) {
        const bool allowed = (word & uint32_t{1} << (t - begin)) != 0;
        logits[t] = allowed ? logits[t] : kForbidden;
      }
    }
  }
}

}  // namespace

void apply_token_bitmask(at::Tensor logits, const at::Tensor& masks) {
  VLLM_CHECK_RANK(logits, 2);
  VLLM_CHECK_RANK(masks, 2);
  VLLM_CHECK_DTYPE(logits, at::kFloat);
  VLLM_CHECK_DTYPE(masks, at::kInt);
  const int64_t rows = logits.size(0), vocab_size = logits.size(1);
  const int64_t words = (vocab_size + 31) / 32;
  VLLM_CHECK_SIZE(masks, 0, rows);
  VLLM_CHECK_SIZE(masks, 1, words);
  VLLM_CHECK_DENSE_ROWS(logits);
  const at::Tensor bits = masks.contiguous();
  const auto* mask = reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>());
  float* values = logits.mutable_data_ptr<float>();
  const int64_t stride = logits.stride(0);
  const int64_t grain = std::max<int64_t>(1, kGrainWords / std::max<int64_t>(1, words));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      mask_row(values + r * stride, mask + r * words, vocab_size);
    }
  });
}

}  // namespace vllm::cpu
