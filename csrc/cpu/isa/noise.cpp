// The hash behind exponential_noise; vllm/ops/sampling.py describes and defines it.

#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/vec.h"

namespace vllm::cpu::VLLM_ISA {
namespace {

template <typename Word>
inline Word mix(Word x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

inline Vec uniform(UintVec bits) {
  // Through int32, which every instruction set converts: both parts fit.
  const Vec coarse = __builtin_convertvector(bit_cast<IntVec>(bits >> 8), Vec) * 0x1p-24f;
  const Vec fine = (__builtin_convertvector(bit_cast<IntVec>(bits & 0xffu), Vec) + 0.5f) * 0x1p-32f;
  return vmin(coarse + fine, splat(1.0f - 0x1p-24f));
}

void noise(uint32_t seed_low, uint32_t seed_high, uint32_t position, int64_t begin, int64_t end,
           float* out) {
  const uint32_t key = mix(mix(mix(seed_low ^ 0x9e3779b9u) + seed_high) ^ position);
  const uint32_t other = mix(mix(mix(position ^ 0x6a09e667u) + seed_low) ^ seed_high);
  UintVec lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = static_cast<uint32_t>(i);
  for_each_vector(end - begin, [&](int64_t i, int n) {
    const UintVec token = lane + static_cast<uint32_t>(begin + i);
    store_n(out + i, -uniform(mix(mix(token + key) ^ other)), n);
  });
}

}  // namespace

void add_noise(KernelTable& table) { table.noise = noise; }

}  // namespace vllm::cpu::VLLM_ISA
