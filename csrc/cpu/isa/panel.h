// What products with a panel have in common: reading ahead, and what becomes of sums.
#pragma once

#include "cpu/isa/activation.h"
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace vllm::cpu::VLLM_ISA {
namespace {

constexpr int kLinesPerPair = 4;    // cache lines of a panel that a pair of inputs takes
constexpr int kStreamAhead = 8192;  // bytes: memory answers in the time these take to use

// Reads memory ahead of use: `kLines` cache lines with every step.
struct Ahead {
  const char* next;

  template <int kLines>
  inline void step() {
    if constexpr (kLines > 0) {
      for (int i = 0; i < kLines; ++i) __builtin_prefetch(next + 64 * i, 0, 2);
      next += 64 * kLines;
    }
  }
};

template <typename T>
inline Vec with_bias(const PanelProduct& product, const float* sums, int column, int n) {
  const Vec sum = load(sums + column);
  if (product.bias == nullptr) return sum;
  return sum + load_n(static_cast<const T*>(product.bias) + column, n);
}

inline Vec activate(Gate gate, Vec x) {
  return gate == Gate::kSilu ? silu(x) : gate == Gate::kGelu ? gelu(x) : gelu_tanh(x);
}

// One row of sums: plain, or the gated product of its halves, rounded as if both were stored.
// Not inlined, nor is keep_greatest: products beside them ran at 0.83 of their speed (GCC 12).
template <typename T>
__attribute__((noinline)) void finish_row(const PanelProduct& product, int64_t row,
                                          const float* sums) {
  const int64_t start = row * product.out_stride;
  for_each_vector(product.num_outputs, [&](int64_t i, int n) {
    const int column = static_cast<int>(i);
    const Vec value = with_bias<T>(product, sums, column, n);
    if (product.gate == Gate::kNone) {
      if (product.wide) {
        store_n(static_cast<float*>(product.out) + start + column, value, n);
      } else {
        store_n(static_cast<T*>(product.out) + start + column, value, n);
      }
      return;
    }
    const Vec other = with_bias<T>(product, sums, column + kPanelOutputs / 2, n);
    const Vec rounded = rounded_to<T>(value);
    const Vec activated = activate(product.gate, rounded);
    const Vec gated = rounded_to<T>(activated) * rounded_to<T>(other);
    store_n(static_cast<T*>(product.out) + start + column, gated, n);
  });
}

// One row of sums, of which no more is wanted than its greatest output.
template <typename T>
__attribute__((noinline)) void keep_greatest(const PanelProduct& product, int64_t row,
                                             const float* sums) {
  Vec most = splat(-__builtin_inff());
  IntVec nan = {};
  for_each_vector(product.num_outputs, [&](int64_t i, int n) {
    Vec value = with_bias<T>(product, sums, static_cast<int>(i), n);
    for (int lane = n; lane < kWidth; ++lane) value[lane] = -__builtin_inff();
    nan |= value != value;
    most = vmax(value, most);
  });
  const float greatest = bits_of(nan) != 0 ? __builtin_nanf("") : greatest_of(most);
  static_cast<float*>(product.out)[row * product.out_stride] = greatest;
}

// What the sums [64] of a row become.
template <typename T>
inline void finish(const PanelProduct& product, int64_t row, const float* sums) {
  if (product.greatest) {
    keep_greatest<T>(product, row, sums);
  } else {
    finish_row<T>(product, row, sums);
  }
}

}  // namespace
}  // namespace vllm::cpu::VLLM_ISA
