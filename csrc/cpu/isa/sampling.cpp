// Passes over one row of logits; vllm/ops/sampling.py defines what they add up to.
//
// Compiled without contraction to fused multiply-adds: weights and variates must have the bits that
// separate operations of the reference give.

#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/vec.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vllm::cpu::VLLM_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
static_assert(kLogitBlock % kWidth == 0 && kLogitBlock % 32 == 0);

template <typename Word>
inline Word mix(Word x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

inline float greatest_of(Vec v) {
  float most = v[0];
  for (int i = 1; i < kWidth; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

inline bool any(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bit_cast<__m512i>(mask), bit_cast<__m512i>(mask)) != 0;
#endif
  int32_t found = 0;
  for (int i = 0; i < kWidth; ++i) found |= mask[i];
  return found != 0;
}

// The first n elements; the others are -inf.
inline Vec load_logits(const float* p, int n) {
  if (n == kWidth) return load(p);
  float buffer[kWidth];
  for (int i = 0; i < kWidth; ++i) buffer[i] = i < n ? p[i] : -kInfinity;
  return load(buffer);
}

void block_maxima(const float* logits, int64_t count, float* maxima) {
  for (int64_t begin = 0; begin < count; begin += kLogitBlock) {
    const int64_t width = count - begin < kLogitBlock ? count - begin : kLogitBlock;
    Vec most = splat(-kInfinity);
    IntVec nan = {};
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec x = load_logits(logits + begin + i, n);
      nan |= x != x;
      most = vmax(x, most);
    });
    maxima[begin / kLogitBlock] = any(nan) ? __builtin_nanf("") : greatest_of(most);
  }
}

// exp(gap) in units of 2^-35 for gap <= 0, rounded down: sums of 2^18 are exact in float64.
inline Vec weight(Vec gap) {
  const Vec r = vmax(gap, splat(-25.0f)) * (1.0f / 64);
  Vec p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  for (int i = 0; i < 6; ++i) p = p * p;
  return p * 0x1p35f;
}

typedef double Wide __attribute__((vector_size(kWidth * 8)));
typedef int64_t WideInt __attribute__((vector_size(kWidth * 8)));

inline Wide floored(Vec weight) {
  // Adding 2^52 in float64 leaves integers; what was rounded up is taken back.
  const Wide x = __builtin_convertvector(weight, Wide);
  const Wide rounded = (x + 0x1p52) - 0x1p52;
  return rounded > x ? rounded - 1.0 : rounded;
}

double mass(const ScaledRow& row, int64_t begin, int64_t end, float* sums_above) {
  Wide total = {};
  Vec above[kNumLevels] = {};
  const Vec floor = splat(row.floor), top = splat(row.top);
  for (int64_t block = begin; block < end; ++block) {
    if (!(row.maxima[block] / row.temperature - row.top >= kLeastGap)) continue;
    const int64_t first = block * kLogitBlock;
    const int64_t width = row.count - first < kLogitBlock ? row.count - first : kLogitBlock;
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec y = load_logits(row.logits + first + i, n) / row.temperature;
      const Vec gap = y - top;
      const Vec w = y >= floor ? weight(gap) : Vec{};
      total += floored(w);
      for (int level = 0; level < kNumLevels; ++level) {
        above[level] += gap >= kLevels[level] ? w : Vec{};
      }
    });
  }
  for (int level = 0; level < kNumLevels; ++level) sums_above[level] = sum(above[level]);
  double whole = 0;
  for (int i = 0; i < kWidth; ++i) whole += total[i];
  return whole;
}

void weights(const float* values, int64_t count, float top, double* out) {
  for_each_vector(count, [&](int64_t i, int n) {
    const Wide w = floored(weight(load_logits(values + i, n) - top));
    for (int lane = 0; lane < n; ++lane) out[i + lane] = w[lane];
  });
}

int64_t collect(const ScaledRow& row, int64_t begin, int64_t end, float bound, int32_t* ids,
                float* values) {
  int64_t found = 0;
  for (int64_t block = begin; block < end; ++block) {
    if (!(row.maxima[block] / row.temperature >= bound)) continue;
    const int64_t first = block * kLogitBlock;
    const int64_t width = row.count - first < kLogitBlock ? row.count - first : kLogitBlock;
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec y = load_logits(row.logits + first + i, n) / row.temperature;
      const IntVec kept = y >= bound;
      if (!any(kept)) return;
      for (int lane = 0; lane < n; ++lane) {
        if (kept[lane] == 0) continue;
        ids[found] = static_cast<int32_t>(first + i + lane);
        values[found++] = y[lane];
      }
    });
  }
  return found;
}

float uniform(uint32_t bits) {
  const float coarse = static_cast<float>(static_cast<int32_t>(bits >> 8)) * 0x1p-24f;
  const float fine = (static_cast<float>(static_cast<int32_t>(bits & 0xffu)) + 0.5f) * 0x1p-32f;
  const float u = coarse + fine;
  return u < 1.0f - 0x1p-24f ? u : 1.0f - 0x1p-24f;
}

// Never below the Gumbel variate of these bits, and rarely far above it: -log(u) with log2 replaced
// by its chords between powers of two, which a float's bits are.
inline Vec noise_bound(UintVec bits) {
  const Vec coarse = __builtin_convertvector(bit_cast<IntVec>(bits >> 8), Vec);
  const Vec log2 = __builtin_convertvector(bit_cast<IntVec>(coarse), Vec) * 0x1p-23f;
  return (151.0f - log2) * 0.6931472f + 1e-4f;
}

class Race {
 public:
  Race(const RaceKey& key, RaceState& state) : key_(key), state_(state) {}

  // Tokens `ids`, `gaps` below the most likely one.
  void run(UintVec ids, Vec gaps, int n) {
    const UintVec bits = mix(mix(ids + key_.first) ^ key_.second);
    const Vec bound = gaps + noise_bound(bits);
    if (!any(bound >= state_.best)) return;
    for (int lane = 0; lane < n; ++lane) {
      if (bound[lane] >= state_.best) enter(ids[lane], gaps[lane], bits[lane]);
    }
  }

 private:
  void enter(uint32_t id, float gap, uint32_t bits) {
    const float u = uniform(bits);
    const double score = gap - __builtin_log(-__builtin_log1p(-static_cast<double>(u)));
    if (score - kRaceMargin > state_.best) {
      state_.best = static_cast<float>(score - kRaceMargin);
      int kept = 0;
      for (int i = 0; i < state_.count; ++i) {
        if (state_.entries[i].score >= state_.best) state_.entries[kept++] = state_.entries[i];
      }
      state_.count = kept;
    }
    // More than a few that close do not occur.
    if (score >= state_.best && state_.count < kMaxRaceEntries) {
      state_.entries[state_.count++] = {static_cast<int32_t>(id), gap, u, score};
    }
  }

  RaceKey key_;
  RaceState& state_;
};

inline UintVec lanes() {
  UintVec lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = static_cast<uint32_t>(i);
  return lane;
}

void race(const ScaledRow& row, const RaceKey& key, int64_t begin, int64_t end, RaceState& state) {
  Race race(key, state);
  const UintVec lane = lanes();
  const Vec top = splat(row.top);
  for (int64_t block = begin; block < end; ++block) {
    if (!(row.maxima[block] / row.temperature - row.top + kMostNoise >= state.best)) continue;
    const int64_t first = block * kLogitBlock;
    const int64_t width = row.count - first < kLogitBlock ? row.count - first : kLogitBlock;
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec y = load_logits(row.logits + first + i, n) / row.temperature;
      race.run(lane + static_cast<uint32_t>(first + i), y - top, n);
    });
  }
}

void race_of(const int32_t* ids, const float* values, int64_t count, float bound, float top,
             const RaceKey& key, RaceState& state) {
  Race race(key, state);
  for_each_vector(count, [&](int64_t i, int n) {
    UintVec id = {};
    __builtin_memcpy(&id, ids + i, sizeof(int32_t) * static_cast<unsigned>(n));
    const Vec y = load_logits(values + i, n);
    race.run(id, y >= bound ? y - top : splat(-kInfinity), n);
  });
}

RaceKey race_key(uint32_t seed_low, uint32_t seed_high, uint32_t position) {
  return {mix(mix(mix(seed_low ^ 0x9e3779b9u) + seed_high) ^ position),
          mix(mix(mix(position ^ 0x6a09e667u) + seed_low) ^ seed_high)};
}

void exp_sums(const float* logits, int64_t count, int64_t begin, int64_t end, float top,
              float* sums) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kLogitBlock;
    const int64_t width = count - first < kLogitBlock ? count - first : kLogitBlock;
    Vec total = {};
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec gap = load_logits(logits + first + i, n) - top;
      total += gap > -104.0f ? vexp(gap) : Vec{};
    });
    sums[block] = sum(total);
  }
}

int64_t count_above(const float* logits, const float* maxima, int64_t count, int64_t begin,
                    int64_t end, float value) {
  int64_t found = 0;
  for (int64_t block = begin; block < end; ++block) {
    if (!(maxima[block] > value)) continue;
    const int64_t first = block * kLogitBlock;
    const int64_t last = first + kLogitBlock < count ? first + kLogitBlock : count;
    for (int64_t i = first; i < last; ++i) found += logits[i] > value;
  }
  return found;
}

// Most words of a grammar's mask are all zeros, or, inside free text, all ones.
void mask_logits(float* logits, const uint32_t* mask, int64_t begin, int64_t end) {
  UintVec lane_bit;
  for (int i = 0; i < kWidth; ++i) lane_bit[i] = uint32_t{1} << i;
  for (int64_t first = begin; first < end; first += 32) {
    const uint32_t word = mask[first / 32];
    if (word == ~uint32_t{0}) continue;
    const int64_t width = end - first < 32 ? end - first : 32;
    for_each_vector(width, [&](int64_t i, int n) {
      const IntVec allowed = (((word >> i) & lane_bit) != 0u);
      if (n == kWidth) {
        store(logits + first + i, allowed ? load(logits + first + i) : splat(-kInfinity));
      } else {
        for (int lane = 0; lane < n; ++lane) {
          if (allowed[lane] == 0) logits[first + i + lane] = -kInfinity;
        }
      }
    });
  }
}

}  // namespace

void add_sampling(KernelTable& table) {
  table.block_maxima = block_maxima;
  table.mass = mass;
  table.weights = weights;
  table.collect = collect;
  table.race_key = race_key;
  table.race = race;
  table.race_of = race_of;
  table.exp_sums = exp_sums;
  table.count_above = count_above;
  table.mask_logits = mask_logits;
}

}  // namespace vllm::cpu::VLLM_ISA
