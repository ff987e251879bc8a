// Pairs of bfloat16 as dot-product instructions take them: read from the cache's layout, or from
// scratch memory where the keys and values of a chunk were paired once.
#pragma once

#include "cpu/isa/attention_chunk.h"
#include "cpu/isa/vec.h"

#if defined(__AVX512BF16__)

namespace vllm::cpu::VLLM_ISA {

inline constexpr int kLanes = 16;     // pairs of a vector; block sizes are multiples of it
inline constexpr int kStripVecs = 4;  // vectors of a strip of paired keys or values
inline constexpr int kStrip = kStripVecs * kLanes;
// Lines computed together: 24 sums, 4 vectors of pairs and one broadcast fit the 32 registers.
inline constexpr int kMaxLines = 6;
// Up to here pairing anew for every group of lines costs less than a detour through memory.
inline constexpr int kFewLines = 2 * kMaxLines;

constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

inline __m512i load_pairs(const void* p) { return _mm512_loadu_si512(p); }

// Elements i of two rows become pair i.
inline __m512i paired(__m256i first, __m256i second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order,
                                  _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
}

inline __m256i load_row(const BFloat16* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m256i load_row(const BFloat16* p, __mmask16 columns) {
  return _mm256_maskz_loadu_epi16(columns, p);
}

inline __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xffff : (1u << (count < 0 ? 0 : count)) - 1);
}

inline constexpr int kLine = 64;  // bytes of a cache line

inline void fetch(const char* line) { __builtin_prefetch(line, 0, 2); }

// Where pairs come from: pair k of vector i. Those that read the cache itself fetch as many lines
// as they use of what will be read next: blocks are small and anywhere in memory, which gives the
// hardware too little to guess from.
struct PairedStrip {
  const uint32_t* memory;  // [pairs, 64]
  __m512i operator()(int k, int i) const {
    return load_pairs(memory + int64_t{k} * kStrip + i * kLanes);
  }
};

struct KeyRows {
  const BFloat16* const* panels;  // of 16 tokens each
  int64_t stride;                 // between dimensions
  const char* const* ahead;       // by panel
  __m512i operator()(int k, int i) const {
    fetch(ahead[i] + k * kLine);
    const BFloat16* row = panels[i] + 2 * k * stride;
    return paired(load_row(row), load_row(row + stride));
  }
};

// The last of an odd number of dimensions: what follows is not a key.
struct LastKeyRow {
  const BFloat16* const* panels;
  int64_t stride;
  __m512i operator()(int k, int i) const {
    return paired(load_row(panels[i] + 2 * k * stride), __m256i{});
  }
};

struct ValueRows {
  const BFloat16* row;  // of pair 0
  int64_t stride;       // between tokens
  const char* ahead;
  __m512i operator()(int k, int i) const {
    fetch(ahead + (k * kStripVecs + i) * kLine);
    const BFloat16* pair = row + 2 * k * stride + i * kLanes;
    return paired(load_row(pair), load_row(pair + stride));
  }
};

// Some columns, or only the first token of a pair.
struct ValueRowsInPart {
  const BFloat16* row;
  int64_t stride;
  __mmask16 columns;
  bool whole;
  __m512i operator()(int k, int i) const {
    const BFloat16* pair = row + 2 * k * stride + i * kLanes;
    return paired(load_row(pair, columns),
                  load_row(whole ? pair + stride : pair, whole ? columns : __mmask16{0}));
  }
};

// sums[m][i] += lines[m][k] * pairs(k, i) for k in [begin, end).
template <int kLines, int kVecs, typename Pairs>
inline void add_pairs(const BFloat16* lines, int64_t stride, int begin, int end, const Pairs& pairs,
                      __m512 (&sums)[kLines][kVecs]) {
  for (int k = begin; k < end; ++k) {
    __m512bh other[kVecs];
    for (int i = 0; i < kVecs; ++i) other[i] = (__m512bh)pairs(k, i);
    for (int m = 0; m < kLines; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, lines + m * stride + 2 * k, sizeof(pair));
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      for (int i = 0; i < kVecs; ++i) sums[m][i] = _mm512_dpbf16_ps(sums[m][i], other[i], both);
    }
  }
}

template <int kLines, int kVecs>
inline void store_sums(const __m512 (&sums)[kLines][kVecs], float* out, int64_t stride) {
  for (int m = 0; m < kLines; ++m) {
    for (int i = 0; i < kVecs; ++i) _mm512_storeu_ps(out + m * stride + i * kLanes, sums[m][i]);
  }
}

// Memory of one tile.
struct Scratch {
  BFloat16* query;    // [lines, head_dim rounded up to pairs]
  float* scores;      // [kMaxLines, chunk]: of the lines computed together
  BFloat16* weights;  // [kMaxLines, chunk]
  uint32_t* keys;     // [chunk / 64, pairs of head_dim, 64]
  uint32_t* values;   // [value_dim / 64, chunk / 2, 64]
};

inline int64_t lay_out(const AttentionShape& shape, int lines, char* memory, Scratch& scratch) {
  int64_t used = 0;
  const auto take = [&]<typename T>(T*& part, int64_t count) {
    if (memory != nullptr) part = reinterpret_cast<T*>(memory + used);
    used += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
  };
  const int64_t pairs = (shape.head_dim + 1) / 2, chunk = round_up(shape.chunk, kStrip);
  take(scratch.query, lines * pairs * 2);
  take(scratch.scores, kMaxLines * chunk);
  take(scratch.weights, kMaxLines * chunk);
  if (lines > kFewLines || shape.latent) {
    take(scratch.keys, chunk * pairs);
    take(scratch.values, round_up(shape.value_dim, kStrip) * chunk / 2);
  }
  return used;
}

// One chunk of a tile.
struct Work {
  const AttentionShape& shape;
  const AttentionTile& tile;
  const Scratch& scratch;
  Chunk chunk;
  const BFloat16* blocks[kMaxChunk / kLanes];
  const BFloat16* next_blocks[kMaxChunk / kLanes];  // of the next chunk, or once more those

  int query_stride() const { return round_up(shape.head_dim, 2); }
  int lines() const { return tile.num_queries * tile.num_heads; }
  bool is_packed() const { return shape.latent || lines() > kFewLines; }
  int score_stride() const { return round_up(shape.chunk, kStrip); }

  Span seen_by(int line) const { return visible(shape, tile, chunk, line / tile.num_heads); }

  const BFloat16* key_panel(int panel) const {
    const int token = panel * kLanes;
    return blocks[token / shape.block_size] + token % shape.block_size;
  }

  // Values of the panel, to read when its keys have been.
  const char* after_keys(int panel) const {
    return reinterpret_cast<const char*>(value_row(panel * kLanes));
  }

  // Keys of the next chunk, to read when values of this one have been: every strip of columns goes
  // through all blocks, and fetches its share of the next ones without a gap.
  const char* after_values(int block, int column) const {
    const int strips = shape.value_dim < kStrip ? 1 : shape.value_dim / kStrip;
    const int share = column / kStrip * chunk.num_blocks + block;
    const int next = share / strips < chunk.num_blocks ? share / strips : chunk.num_blocks - 1;
    return reinterpret_cast<const char*>(next_blocks[next]) +
           share % strips * (shape.block_size / 2 * kStripVecs * kLine);
  }

  const BFloat16* value_row(int token) const {
    return blocks[token / shape.block_size] + shape.value_offset +
           token % shape.block_size * shape.value_stride;
  }
};

inline void gather_queries(const AttentionShape& shape, const AttentionTile& tile, BFloat16* out) {
  const int64_t stride = round_up(shape.head_dim, 2);
  for (int i = 0; i < tile.num_queries; ++i) {
    for (int h = 0; h < tile.num_heads; ++h, out += stride) {
      const BFloat16* in = static_cast<const BFloat16*>(tile.query) + i * shape.query_token_stride +
                           h * shape.query_head_stride;
      if (stride != shape.head_dim) out[stride - 1] = BFloat16{0};
      __builtin_memcpy(out, in, shape.head_dim * sizeof(BFloat16));
    }
  }
}

// Swaps what is off the diagonal of all squares of 2 * kStep rows and columns.
template <int kStep>
inline void swap_corners(__m512i (&rows)[16]) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i other = _mm512_set1_epi32(16);  // of the second operand
  const __m512i step = _mm512_set1_epi32(kStep);
  const __mmask16 right = _mm512_test_epi32_mask(lane, step);
  const __m512i upper = _mm512_mask_or_epi32(lane, right, _mm512_sub_epi32(lane, step), other);
  const __m512i lower = _mm512_add_epi32(upper, step);
#pragma GCC unroll 8
  for (int pair = 0; pair < 8; ++pair) {
    const int i = pair / kStep * 2 * kStep + pair % kStep;
    const __m512i a = rows[i], b = rows[i + kStep];
    rows[i] = _mm512_permutex2var_epi32(a, upper, b);
    rows[i + kStep] = _mm512_permutex2var_epi32(a, lower, b);
  }
}

// Row i of 16 becomes column i.
inline void transpose(__m512i (&rows)[16]) {
  swap_corners<1>(rows);
  swap_corners<2>(rows);
  swap_corners<4>(rows);
  swap_corners<8>(rows);
}

inline void pack_keys(const Work& work) {
  const AttentionShape& shape = work.shape;
  const int pairs = (shape.head_dim + 1) / 2, odd = shape.head_dim % 2;
  const int num_panels = work.chunk.num_blocks * (shape.block_size / kLanes);
  for (int p = 0; p < num_panels; ++p) {
    uint32_t* out =
        work.scratch.keys + int64_t{p / kStripVecs} * pairs * kStrip + p % kStripVecs * kLanes;
    const BFloat16* panel = work.key_panel(p);
    const char* values = work.after_keys(p);
    const KeyRows rows{&panel, shape.block_size, &values};
    for (int k = 0; k < pairs - odd; ++k) _mm512_storeu_si512(out + k * kStrip, rows(k, 0));
    if (odd) {
      _mm512_storeu_si512(out + (pairs - 1) * kStrip,
                          LastKeyRow{&panel, shape.block_size}(pairs - 1, 0));
    }
  }
}

// Latent rows hold the pairs already: 16 tokens by 16 pairs are transposed at a time.
inline void pack_latent_keys(const Work& work) {
  const AttentionShape& shape = work.shape;
  const int pairs = (shape.head_dim + 1) / 2;
  for (int p = 0; p * kLanes < work.chunk.end; ++p) {
    uint32_t* out =
        work.scratch.keys + int64_t{p / kStripVecs} * pairs * kStrip + p % kStripVecs * kLanes;
    const BFloat16* tokens = work.value_row(p * kLanes);
    for (int d = 0; d < shape.head_dim; d += 2 * kLanes) {
      const int left = shape.head_dim - d;
      const __mmask32 columns = left >= 32 ? ~0u : (1u << left) - 1;
      __m512i rows[16];
#pragma GCC unroll 16
      for (int t = 0; t < kLanes; ++t) {
        rows[t] = _mm512_maskz_loadu_epi16(columns, tokens + t * shape.value_stride + d);
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; ++k) {
        if (d / 2 + k < pairs) _mm512_storeu_si512(out + int64_t{d / 2 + k} * kStrip, rows[k]);
      }
    }
  }
}

inline void pack_values(const Work& work) {
  const AttentionShape& shape = work.shape;
  const int strip_size = work.score_stride() / 2 * kStrip;
  for (int t = work.chunk.begin / 2 * 2; t < work.chunk.end; t += 2) {
    uint32_t* out = work.scratch.values + t / 2 * kStrip;
    ValueRowsInPart rows{work.value_row(t), shape.value_stride, 0xffff, t + 1 < work.chunk.end};
    for (int d = 0; d < shape.value_dim; d += kLanes) {
      rows.columns = first_lanes(shape.value_dim - d);
      _mm512_storeu_si512(out + int64_t{d / kStrip} * strip_size + d % kStrip, rows(0, d / kLanes));
    }
  }
}

}  // namespace vllm::cpu::VLLM_ISA

#endif
