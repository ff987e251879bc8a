// Passes over one row of logits; vllm/ops/sampling.py defines what they add up to.
//
// Compiled without contraction to fused multiply-adds: weights and variates must have the bits that
// separate operations of the reference give.

#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/vec.h"

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

// Calls body(lane) for each lane that is set.
template <typename Body>
inline void for_each_lane(IntVec mask, Body body) {
  for (uint32_t bits = bits_of(mask); bits != 0; bits &= bits - 1) body(__builtin_ctz(bits));
}

// The first n elements; the others are -inf.
inline Vec load_logits(const float* p, int n) {
  if (n == kWidth) return load(p);
  float buffer[kWidth];
  for (int i = 0; i < kWidth; ++i) buffer[i] = i < n ? p[i] : -kInfinity;
  return load(buffer);
}

// The greatest of every kWidth-th logit of each block: several, and no lane need be compared with
// another.
int64_t lane_maxima(const float* logits, int64_t count, float* maxima) {
  float* out = maxima;
  for (int64_t begin = 0; begin + kLogitBlock <= count; begin += kLogitBlock, out += kWidth) {
    Vec most = load(logits + begin);
    for (int i = kWidth; i < kLogitBlock; i += kWidth) most = vmax(load(logits + begin + i), most);
    store(out, most);
  }
  return out - maxima;
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
    maxima[begin / kLogitBlock] = bits_of(nan) != 0 ? __builtin_nanf("") : greatest_of(most);
  }
}

// exp(gap) in units of 2^-35, for gap <= 0.
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

// A weight is below 2^35, and a whole number from 2^23 on.
inline Vec floored(Vec w) {
  return w < 0x1p23f ? __builtin_convertvector(__builtin_convertvector(w, IntVec), Vec) : w;
}

// Sums of whole numbers below 2^35, exact: in lanes of float32, in two halves of 18 bits, as long
// as float32 holds them, then in float64.
class ExactSum {
 public:
  void add(Vec w) {
    const Vec high = (w + 0x1.8p41f) - 0x1.8p41f;  // a multiple of 2^18, w - high at most 2^17
    high_ += high;
    low_ += w - high;
    if (++count_ == 64) flush();
  }
  double total() {
    flush();
    return total_;
  }

 private:
  void flush() {
    float high[kWidth], low[kWidth];
    store(high, high_);
    store(low, low_);
    for (int i = 0; i < kWidth; ++i) {
      total_ += static_cast<double>(high[i]) + static_cast<double>(low[i]);
    }
    high_ = low_ = Vec{};
    count_ = 0;
  }

  Vec high_{}, low_{};
  double total_ = 0;
  int count_ = 0;
};

double mass(const ScaledRow& row, int64_t begin, int64_t end, float* sums_above) {
  ExactSum total;
  Vec above[kNumLevels] = {};
  const Vec floor = splat(row.floor), top = splat(row.top);
  for (int64_t block = begin; block < end; ++block) {
    if (!(row.maxima[block] / row.temperature - row.top >= kLeastGap)) continue;
    const int64_t first = block * kLogitBlock;
    const int64_t width = row.count - first < kLogitBlock ? row.count - first : kLogitBlock;
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec y = load_logits(row.logits + first + i, n) / row.temperature;
      const Vec gap = y - top;
      const Vec w = y >= floor ? floored(weight(gap)) : Vec{};
      total.add(w);
      for (int level = 0; level < kNumLevels; ++level) {
        above[level] += gap >= kLevels[level] ? w : Vec{};
      }
    });
  }
  for (int level = 0; level < kNumLevels; ++level) sums_above[level] = sum(above[level]);
  return total.total();
}

void weights(const float* values, int64_t count, float top, double* out) {
  for_each_vector(count, [&](int64_t i, int n) {
    float buffer[kWidth];
    store(buffer, floored(weight(load_logits(values + i, n) - top)));
    for (int lane = 0; lane < n; ++lane) out[i + lane] = buffer[lane];
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
      const uint32_t inside = n == kWidth ? ~0u : (1u << n) - 1;
      uint32_t kept = bits_of(y >= bound) & inside;
      if (kept == 0) return;
      float buffer[kWidth];
      store(buffer, y);
      for (; kept != 0; kept &= kept - 1) {
        const int lane = __builtin_ctz(kept);
        ids[found] = static_cast<int32_t>(first + i + lane);
        values[found++] = buffer[lane];
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

  // Tokens `ids`, `gaps` below the most likely one; -inf: none.
  void run(UintVec ids, Vec gaps) {
    const UintVec bits = mix(mix(ids + key_.first) ^ key_.second);
    const Vec bound = gaps + noise_bound(bits);
    for_each_lane((bound >= state_.best) & (gaps > -kInfinity), [&](int lane) {
      if (bound[lane] >= state_.best) enter(ids[lane], gaps[lane], bits[lane]);
    });
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
      race.run(lane + static_cast<uint32_t>(first + i), y - top);
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
    race.run(id, y >= bound ? y - top : splat(-kInfinity));
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
  table.lane_maxima = lane_maxima;
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
