// A row of logits, divided into blocks and, where there are few rows, into parts for threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace vllm::cpu {

// What one thread needs for one row, kept for the next.
struct Scratch {
  void reserve(int64_t count) {
    const auto size = static_cast<size_t>(count);
    if (ids.size() >= size) return;
    maxima.resize(size / kLogitBlock + 1);
    ids.resize(size);
    values.resize(size);
    sorted.resize(size);
  }
  double* weights(int64_t count) {
    if (static_cast<int64_t>(wide.size()) < count) wide.resize(static_cast<size_t>(count));
    return wide.data();
  }
  std::vector<float> maxima, values, sorted;
  std::vector<int32_t> ids;
  std::vector<double> wide;
};

inline Scratch& scratch_of_thread() {
  static thread_local Scratch scratch;
  return scratch;
}

struct RowView {
  const float* logits;
  int64_t count;
  int64_t parts;                  // threads' shares; 1: the caller's thread does everything
  const float* maxima = nullptr;  // by block; see find_maxima
  float top = 0;                  // the greatest of them

  int64_t blocks() const { return (count + kLogitBlock - 1) / kLogitBlock; }
  int64_t first_block(int64_t part) const { return blocks() * part / parts; }

  // Calls body(part, first block, end block) for every part.
  template <typename Body>
  void for_each_part(const Body& body) const {
    const auto run = [&](int64_t i) { body(i, first_block(i), first_block(i + 1)); };
    if (parts == 1) {
      run(0);
    } else {
      for_each_task(parts, run);
    }
  }
};

// Sets view.maxima and view.top. False: nothing can be chosen, for there is NaN, or only -inf.
bool find_maxima(RowView& view, Scratch& scratch);

// A bound that at least n logits reach, and not many more: the n-th greatest of some maxima, or
// -inf if n is too large a share of the row.
float bound_of_greatest(const RowView& view, int64_t n, Scratch& scratch);

// Index of the first logit that is the greatest of a row.
int32_t first_of_greatest(const RowView& view);

// Calls body(r, view, scratch) for all rows of logits [S, V]: several at a time, or, if there are
// fewer than threads, one after the other and each divided.
template <typename Body>
void for_each_row(const at::Tensor& logits, const Body& body) {
  constexpr int64_t kRowGrain = 16 * 1024, kPartLogits = 8 * 1024;
  const int64_t rows = logits.size(0), count = logits.size(1), stride = logits.stride(0);
  const float* data = logits.const_data_ptr<float>();
  if (rows < num_threads()) {
    const int64_t parts = std::clamp<int64_t>(count / kPartLogits, 1, 2 * num_threads());
    for (int64_t r = 0; r < rows; ++r) {
      RowView view{data + r * stride, count, parts};
      body(r, view, scratch_of_thread());
    }
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kRowGrain / std::max<int64_t>(1, count));
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      RowView view{data + r * stride, count, 1};
      body(r, view, scratch_of_thread());
    }
  });
}

}  // namespace vllm::cpu
