// Mixture of experts: which experts a token gets.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Logits a thread should at least have: below, waking it costs more than the work.
constexpr int64_t kGrain = 2048;

struct Choice {
  const float* correction;  // [E] or null
  int64_t num_experts;
  int64_t top_k;
  bool is_sigmoid;
  bool renormalise;
  int64_t groups;
  int64_t top_groups;
  float scale;
};

// NaN is greatest, as it is for torch.topk.
bool is_greater(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// Indices of the `most` greatest of `count` values, the greatest first, of equals the first.
void find_greatest(const float* values, int64_t count, int64_t most, int64_t* indices) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (kept == most && !is_greater(values[i], values[indices[most - 1]])) continue;
    int64_t place = kept < most ? kept++ : most - 1;
    for (; place > 0 && is_greater(values[i], values[indices[place - 1]]); --place) {
      indices[place] = indices[place - 1];
    }
    indices[place] = i;
  }
}

// Chooses for one token at a time.
class Chooser {
 public:
  explicit Chooser(const Choice& choice)
      : choice_(choice),
        scores_(choice.num_experts),
        values_(choice.num_experts),
        quality_(choice.groups),
        open_(choice.top_groups) {}

  template <typename T>
  void choose(const T* logits, float* weights, int64_t* ids) {
    std::copy_n(logits, choice_.num_experts, scores_.begin());
    if (choice_.is_sigmoid) {
      for (float& score : scores_) score = 1.0f / (1.0f + std::exp(-score));
    } else {
      softmax();
    }
    values_ = scores_;
    if (choice_.correction != nullptr) {
      for (int64_t e = 0; e < choice_.num_experts; ++e) values_[e] += choice_.correction[e];
    }
    if (choice_.groups > 1) close_groups();
    find_greatest(values_.data(), choice_.num_experts, choice_.top_k, ids);
    weigh(weights, ids);
  }

 private:
  void softmax() {
    const float top = *std::max_element(scores_.begin(), scores_.end());
    float total = 0;
    for (float& score : scores_) total += score = std::exp(score - top);
    for (float& score : scores_) score /= total;
  }

  // Experts outside the best groups get -inf.
  void close_groups() {
    const int64_t size = choice_.num_experts / choice_.groups;
    const int64_t counted = choice_.correction == nullptr ? 1 : 2;
    for (int64_t g = 0; g < choice_.groups; ++g) {
      const float* group = values_.data() + g * size;
      int64_t best[2];
      find_greatest(group, size, counted, best);
      quality_[g] = counted == 1 ? group[best[0]] : group[best[0]] + group[best[1]];
    }
    find_greatest(quality_.data(), choice_.groups, choice_.top_groups, open_.data());
    for (int64_t g = 0; g < choice_.groups; ++g) {
      if (std::find(open_.begin(), open_.end(), g) != open_.end()) continue;
      std::fill_n(values_.begin() + g * size, size, -std::numeric_limits<float>::infinity());
    }
  }

  void weigh(float* weights, const int64_t* ids) const {
    float total = 0;
    for (int64_t i = 0; i < choice_.top_k; ++i) total += weights[i] = scores_[ids[i]];
    // The smallest term matters only where all sigmoids underflow.
    const float divisor = choice_.renormalise ? total + 1e-20f : 1.0f;
    for (int64_t i = 0; i < choice_.top_k; ++i) weights[i] = weights[i] / divisor * choice_.scale;
  }

  const Choice& choice_;
  std::vector<float> scores_;
  std::vector<float> values_;   // by which experts are chosen
  std::vector<float> quality_;  // of groups
  std::vector<int64_t> open_;   // the best groups
};

template <typename T>
void choose_rows(const at::Tensor& logits, const Choice& choice, float* weights, int64_t* ids) {
  const T* from = logits.const_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, kGrain / choice.num_experts);
  parallel_for(0, logits.size(0), grain, [&](int64_t begin, int64_t end) {
    Chooser chooser(choice);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t to = t * choice.top_k;
      chooser.choose(from + t * choice.num_experts, weights + to, ids + to);
    }
  });
}

void check_choice(const Choice& choice) {
  TORCH_CHECK(0 < choice.top_k && choice.top_k <= choice.num_experts, "top_k must be 1 to ",
              choice.num_experts, ", is ", choice.top_k);
  TORCH_CHECK(choice.groups > 0 && choice.num_experts % choice.groups == 0,
              "groups must divide the ", choice.num_experts, " experts, is ", choice.groups);
  TORCH_CHECK(0 < choice.top_groups && choice.top_groups <= choice.groups,
              "top_groups must be 1 to ", choice.groups, ", is ", choice.top_groups);
  TORCH_CHECK(
      choice.groups == 1 || choice.correction == nullptr || choice.num_experts / choice.groups > 1,
      "with a correction, groups must have two experts, have one");
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> choose_experts(const at::Tensor& logits,
                                                  const std::optional<at::Tensor>& correction,
                                                  int64_t top_k, const std::string& score,
                                                  bool renormalise, int64_t groups,
                                                  int64_t top_groups, double scale) {
  VLLM_CHECK_RANK(logits, 2);
  const bool is_sigmoid = score == "sigmoid";
  TORCH_CHECK(is_sigmoid || score == "softmax", "score must be softmax or sigmoid, is ", score);
  Choice choice{nullptr,     logits.size(1), top_k,      is_sigmoid,
                renormalise, groups,         top_groups, static_cast<float>(scale)};
  if (correction) {
    VLLM_CHECK_RANK(*correction, 1);
    VLLM_CHECK_SIZE(*correction, 0, choice.num_experts);
    VLLM_CHECK_DTYPE(*correction, at::kFloat);
    VLLM_CHECK_CONTIGUOUS(*correction);
    choice.correction = correction->const_data_ptr<float>();
  }
  check_choice(choice);
  const at::Tensor dense = logits.contiguous();
  const at::Tensor weights = at::empty({logits.size(0), top_k}, logits.options().dtype(at::kFloat));
  const at::Tensor ids = at::empty({logits.size(0), top_k}, logits.options().dtype(at::kLong));
  float* weight = weights.mutable_data_ptr<float>();
  int64_t* id = ids.mutable_data_ptr<int64_t>();
  switch (dtype_of(logits, "logits")) {
    case kBFloat16:
      choose_rows<at::BFloat16>(dense, choice, weight, id);
      break;
    case kFloat16:
      choose_rows<at::Half>(dense, choice, weight, id);
      break;
    default:
      choose_rows<float>(dense, choice, weight, id);
  }
  return {weights, ids};
}

}  // namespace vllm::cpu
