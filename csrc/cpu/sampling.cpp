// From logits to tokens: rows, or parts of few rows, divided over threads.
//
// A first pass keeps the greatest logit of every block. It tells which blocks the others can skip:
// after it the most likely tokens, however many, cost next to nothing, and a vocabulary is never
// sorted.

#include "cpu/sampling.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log1p.h>

#include <cmath>
#include <limits>

#include "common/check.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

constexpr int32_t kNoToken = -1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLeastFloat = std::numeric_limits<float>::lowest();
// Logits a thread should at least have.
constexpr int64_t kGrain = 16 * 1024;

// The logarithms of the reference, for the rare row in which rounding decides.
int32_t winner_by_reference(const std::vector<RaceEntry>& entries) {
  const auto count = static_cast<int64_t>(entries.size());
  at::Tensor noise = at::empty({count}, at::TensorOptions().dtype(at::kFloat));
  for (int64_t i = 0; i < count; ++i) noise.mutable_data_ptr<float>()[i] = -entries[i].uniform;
  noise = at::log(at::log1p(noise).neg_()).neg_();
  const float* values = noise.const_data_ptr<float>();
  int64_t winner = 0;
  const auto score = [&](int64_t i) { return values[i] + entries[i].gap; };
  for (int64_t i = 1; i < count; ++i) {
    const bool first = entries[i].id < entries[winner].id;
    if (score(i) > score(winner) || (first && score(i) == score(winner))) winner = i;
  }
  return entries[winner].id;
}

int32_t winner_of(const std::vector<RaceState>& states) {
  float best = -kInfinity;
  for (const RaceState& state : states) best = std::max(best, state.best);
  std::vector<RaceEntry> entries;
  for (const RaceState& state : states) {
    for (int i = 0; i < state.count; ++i) {
      if (state.entries[i].score >= best) entries.push_back(state.entries[i]);
    }
  }
  TORCH_INTERNAL_ASSERT(!entries.empty());
  return entries.size() == 1 ? entries[0].id : winner_by_reference(entries);
}

struct DrawParams {
  float temperature;
  float log_min_p;  // -inf: off
  int64_t top_k;    // the vocabulary's size: off
  float top_p;      // 1: off
  RaceKey key;
};

// Draws from one row whose maxima are known.
class Draw {
 public:
  Draw(const RowView& view, const DrawParams& params, Scratch& scratch)
      : view_(view), params_(params), scratch_(scratch) {}

  int32_t token() {
    const float top = view_.top / params_.temperature;
    if (!std::isfinite(top)) return kNoToken;
    row_ = {view_.logits,        view_.maxima, view_.count,
            params_.temperature, top,          std::max(top + params_.log_min_p, kLeastFloat)};
    const bool limits_k = params_.top_k < view_.count, limits_p = params_.top_p < 1.0f;
    if (limits_k) return race_of_list(top_k());
    if (limits_p) return race_of_list(top_p());
    if (params_.log_min_p == -kInfinity) return race_of_row();
    collect(row_.floor);
    return race_of_list(row_.floor);
  }

 private:
  // Fills the list with everything that is at least `bound`.
  void collect(float bound) {
    const auto kernel = kernels().collect;
    std::vector<int64_t> found(static_cast<size_t>(view_.parts));
    view_.for_each_part([&](int64_t part, int64_t begin, int64_t end) {
      const int64_t offset = begin * kLogitBlock;
      found[part] = kernel(row_, begin, end, bound, scratch_.ids.data() + offset,
                           scratch_.values.data() + offset);
    });
    count_ = found[0];
    for (int64_t part = 1; part < view_.parts; ++part) {
      const int64_t offset = view_.first_block(part) * kLogitBlock;
      std::copy_n(scratch_.ids.data() + offset, found[part], scratch_.ids.data() + count_);
      std::copy_n(scratch_.values.data() + offset, found[part], scratch_.values.data() + count_);
      count_ += found[part];
    }
  }

  // The least of the top_k greatest, or of those that top_p leaves of them; collects them.
  float top_k() {
    const int64_t k = params_.top_k;
    float bound = row_.floor;
    bound = std::max(bound, bound_of_greatest(view_, k, scratch_) / params_.temperature);
    collect(bound);
    float* values = scratch_.sorted.data();
    std::copy_n(scratch_.values.data(), count_, values);
    int64_t kept = count_;
    if (count_ > k) {
      std::nth_element(values, values + k - 1, values + count_, std::greater<float>());
      bound = values[k - 1];
      kept = k;
    }
    if (params_.top_p == 1.0f) return bound;
    double* weights = scratch_.weights(kept);
    kernels().weights(values, kept, row_.top, weights);
    double total = 0;
    for (int64_t i = 0; i < kept; ++i) total += weights[i];
    float found = bound;
    find_nucleus(values, kept, params_.top_p * static_cast<float>(total), found);
    return found;
  }

  // The least logit of the nucleus; collects it and what is about as likely.
  float top_p() {
    const auto kernel = kernels().mass;
    std::vector<double> parts(static_cast<size_t>(view_.parts));
    std::vector<std::array<float, kNumLevels>> above(parts.size());
    view_.for_each_part([&](int64_t part, int64_t begin, int64_t end) {
      parts[part] = kernel(row_, begin, end, above[part].data());
    });
    double total = 0;
    for (const double part : parts) total += part;
    const float enough = params_.top_p * static_cast<float>(total);
    for (int level = 0; level < kNumLevels; ++level) {
      float estimate = 0;
      for (const auto& part : above) estimate += part[level];
      if (estimate < enough * 1.0001f) continue;
      collect(std::max(row_.floor, row_.top + kLevels[level]));
      std::copy_n(scratch_.values.data(), count_, scratch_.sorted.data());
      float bound;
      if (find_nucleus(scratch_.sorted.data(), count_, enough, bound)) return bound;
    }
    collect(row_.floor);
    std::copy_n(scratch_.values.data(), count_, scratch_.sorted.data());
    float bound = row_.floor;
    find_nucleus(scratch_.sorted.data(), count_, enough, bound);
    return bound;
  }

  // The least of the greatest values whose weights add up to `enough`; false if all are too few.
  // Sums are exact, so it does not matter in which order they are formed. Sorts `values`, in part.
  bool find_nucleus(float* values, int64_t count, float enough, float& least) {
    constexpr int kBuckets = 1600, kPerUnit = 64;
    double before = 0;
    float* begin = values;
    float* end = values + count;
    if (count > kSortable) {
      double* weights = scratch_.weights(count);
      kernels().weights(values, count, row_.top, weights);
      std::array<double, kBuckets> sums{};
      const auto bucket = [&](float value) {
        return static_cast<int>(std::min((row_.top - value) * kPerUnit, kBuckets - 1.0f));
      };
      for (int64_t i = 0; i < count; ++i) sums[bucket(values[i])] += weights[i];
      int last = 0;
      while (last < kBuckets && static_cast<float>(before + sums[last]) < enough) {
        before += sums[last++];
      }
      if (last == kBuckets) return false;
      end = std::partition(values, end, [&](float value) { return bucket(value) == last; });
    }
    std::sort(begin, end, std::greater<float>());
    double* weights = scratch_.weights(end - begin);
    kernels().weights(begin, end - begin, row_.top, weights);
    for (int64_t i = 0; begin + i < end; ++i) {
      before += weights[i];
      if (static_cast<float>(before) < enough) continue;
      least = begin[i];
      return true;
    }
    return false;
  }

  int32_t race_of_list(float bound) {
    std::vector<RaceState> states(1);
    states[0] = {-kInfinity, 0, {}};
    kernels().race_of(scratch_.ids.data(), scratch_.values.data(), count_, bound, row_.top,
                      params_.key, states[0]);
    return winner_of(states);
  }

  int32_t race_of_row() {
    // What the most likely token scores spares many blocks a look.
    RaceState start{-kInfinity, 0, {}};
    const int32_t likely = first_of_greatest(view_);
    kernels().race_of(&likely, &row_.top, 1, row_.top, row_.top, params_.key, start);
    std::vector<RaceState> states(static_cast<size_t>(view_.parts), {start.best, 0, {}});
    const auto kernel = kernels().race;
    view_.for_each_part([&](int64_t part, int64_t begin, int64_t end) {
      kernel(row_, params_.key, begin, end, states[part]);
    });
    return winner_of(states);
  }

  static constexpr int64_t kSortable = 128;
  const RowView& view_;
  const DrawParams& params_;
  Scratch& scratch_;
  ScaledRow row_{};
  int64_t count_ = 0;  // of the list in scratch_.ids and scratch_.values
};

// One number per slot: a column of a table.
template <typename T>
struct Column {
  Column(const at::Tensor& column) : data(column.const_data_ptr<T>()), stride(column.stride(0)) {}
  T at(int64_t slot) const { return data[slot * stride]; }
  const T* data;
  int64_t stride;
};

struct SlotTables {
  Column<float> temperature, log_min_p;
  Column<int32_t> top_k;
  Column<float> top_p;
  Column<int32_t> seeds;  // two words each
};

void check_column(const at::Tensor& column, const char* name, at::ScalarType dtype, int64_t rank) {
  TORCH_CHECK(column.dim() == rank && column.scalar_type() == dtype, name, " must be ", dtype,
              " of rank ", rank, ", is ", column.scalar_type(), " ", column.sizes());
}

}  // namespace

float bound_of_greatest(const RowView& view, int64_t n, Scratch& scratch) {
  float* values = scratch.sorted.data();
  int64_t count = view.blocks();
  if (count >= n) {
    std::copy_n(view.maxima, count, values);
  } else {
    count = kernels().lane_maxima(view.logits, view.count, values);
    if (count < n) return -kInfinity;
  }
  std::nth_element(values, values + n - 1, values + count, std::greater<float>());
  return values[n - 1];
}

int32_t first_of_greatest(const RowView& view) {
  int64_t block = 0;
  while (view.maxima[block] != view.top) ++block;
  int64_t i = block * kLogitBlock;
  while (view.logits[i] != view.top) ++i;
  return static_cast<int32_t>(i);
}

bool find_maxima(RowView& view, Scratch& scratch) {
  scratch.reserve(view.count);
  view.maxima = scratch.maxima.data();
  const auto kernel = kernels().block_maxima;
  view.for_each_part([&](int64_t, int64_t begin, int64_t end) {
    const int64_t first = begin * kLogitBlock, last = std::min(end * kLogitBlock, view.count);
    kernel(view.logits + first, last - first, scratch.maxima.data() + begin);
  });
  view.top = -kInfinity;
  bool sane = true;
  for (int64_t block = 0; block < view.blocks(); ++block) {
    sane &= view.maxima[block] == view.maxima[block];
    view.top = std::max(view.top, view.maxima[block]);
  }
  return sane && view.top > -kInfinity;
}

at::Tensor greatest(const at::Tensor& values) {
  VLLM_CHECK_RANK(values, 2);
  VLLM_CHECK_DTYPE(values, at::kFloat);
  VLLM_CHECK_DENSE_ROWS(values);
  const at::Tensor out = at::empty({values.size(0)}, values.options().dtype(at::kInt));
  int32_t* tokens = out.mutable_data_ptr<int32_t>();
  for_each_row(values, [&](int64_t r, RowView& view, Scratch& scratch) {
    tokens[r] = find_maxima(view, scratch) ? first_of_greatest(view) : kNoToken;
  });
  return out;
}

at::Tensor choose(const at::Tensor& logits, const at::Tensor& draws, const at::Tensor& slots,
                  const at::Tensor& positions, const at::Tensor& temperature,
                  const at::Tensor& log_min_p, const at::Tensor& top_k, const at::Tensor& top_p,
                  const at::Tensor& seeds) {
  VLLM_CHECK_RANK(logits, 2);
  VLLM_CHECK_DTYPE(logits, at::kFloat);
  VLLM_CHECK_DENSE_ROWS(logits);
  for (const auto* column : {&draws, &slots, &positions}) {
    TORCH_CHECK(column->dim() == 1 && column->size(0) == logits.size(0) && column->is_contiguous(),
                "draws, slots and positions must have one entry per row of logits ", logits.sizes(),
                ", one has ", column->sizes());
  }
  VLLM_CHECK_DTYPE(draws, at::kBool);
  VLLM_CHECK_DTYPE(slots, at::kInt);
  VLLM_CHECK_DTYPE(positions, at::kInt);
  check_column(temperature, "temperature", at::kFloat, 1);
  check_column(log_min_p, "log_min_p", at::kFloat, 1);
  check_column(top_k, "top_k", at::kInt, 1);
  check_column(top_p, "top_p", at::kFloat, 1);
  check_column(seeds, "seeds", at::kInt, 2);
  VLLM_CHECK_SIZE(seeds, 1, 2);
  TORCH_CHECK(seeds.stride(1) == 1, "seeds must be dense in its last dimension");
  const SlotTables tables{temperature, log_min_p, top_k, top_p, seeds};
  const bool* draw = draws.const_data_ptr<bool>();
  const int32_t* slot = slots.const_data_ptr<int32_t>();
  const int32_t* position = positions.const_data_ptr<int32_t>();
  const at::Tensor out = at::empty({logits.size(0)}, slots.options());
  int32_t* tokens = out.mutable_data_ptr<int32_t>();
  for_each_row(logits, [&](int64_t r, RowView& view, Scratch& scratch) {
    if (!find_maxima(view, scratch)) {
      tokens[r] = kNoToken;
    } else if (!draw[r]) {
      tokens[r] = first_of_greatest(view);
    } else {
      const int64_t s = slot[r];
      const int32_t* seed = tables.seeds.data + s * tables.seeds.stride;
      const RaceKey key =
          kernels().race_key(static_cast<uint32_t>(seed[0]), static_cast<uint32_t>(seed[1]),
                             static_cast<uint32_t>(position[r]));
      const DrawParams params{tables.temperature.at(s), tables.log_min_p.at(s), tables.top_k.at(s),
                              tables.top_p.at(s), key};
      tokens[r] = Draw(view, params, scratch).token();
    }
  });
  return out;
}

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
  const auto kernel = kernels().mask_logits;
  // Words of all rows in one sequence, so that one row is divided, too.
  parallel_for(0, rows * words, kGrain / 32, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t r = begin / words, first = begin % words;
      const int64_t last = std::min(words, first + end - begin);
      kernel(values + r * stride, mask + r * words, first * 32, std::min(last * 32, vocab_size));
      begin += last - first;
    }
  });
}

}  // namespace vllm::cpu
