// Activation functions of a vector.
#pragma once

#include "cpu/isa/vec.h"

namespace vllm::cpu::VLLM_ISA {

inline Vec silu(Vec x) { return x / (1.0f + vexp(-x)); }

inline Vec gelu_tanh(Vec x) {
  const Vec inner = 0.79788456f * (x + 0.044715f * (x * x * x));  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + vtanh(inner));
}

// With the exact error function, of which there is no vector form here.
inline Vec gelu(Vec x) {
  Vec out;
  for (int i = 0; i < kWidth; ++i) {
    out[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678f));  // sqrt(1 / 2)
  }
  return out;
}

}  // namespace vllm::cpu::VLLM_ISA
