// Attention in bfloat16 by dot products of pairs: both of neighbouring dimensions (scores) and of
// neighbouring tokens (weighted values) are multiplied and added by one instruction.
//
// Tiles of many lines pair the keys and values of a chunk once, into scratch memory; tiles of few
// lines pair them in registers. Either way every sum takes the same pairs in the same order.

#include "cpu/isa/kernels_of_isa.h"

#if defined(__AVX512BF16__)

#include "cpu/isa/attention_chunk.h"
#include "cpu/isa/vec.h"

namespace vllm::cpu::VLLM_ISA {
namespace {

constexpr int kLanes = 16;     // pairs of a vector; block sizes are multiples of it
constexpr int kStripVecs = 4;  // vectors of a strip of paired keys or values
constexpr int kStrip = kStripVecs * kLanes;
// Lines computed together: 24 sums, 4 vectors of pairs and one broadcast fit the 32 registers.
constexpr int kMaxLines = 6;
constexpr int kTileLines = 128;
// Up to here pairing anew for every group of lines costs less than a detour through memory.
constexpr int kFewLines = 2 * kMaxLines;
constexpr float kLog2E = 1.44269504f;
constexpr float kHidden = -__builtin_huge_valf();

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

constexpr int kLine = 64;  // bytes of a cache line

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
    fetch(ahead + 2 * k * stride * int64_t{sizeof(BFloat16)} + i * kLine);
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

template <int kLines, int kVecs>
inline void load_sums(const float* in, int64_t stride, const float* factors,
                      __m512 (&sums)[kLines][kVecs]) {
  for (int m = 0; m < kLines; ++m) {
    const __m512 factor = _mm512_set1_ps(factors[m]);
    for (int i = 0; i < kVecs; ++i) {
      sums[m][i] = _mm512_mul_ps(_mm512_loadu_ps(in + m * stride + i * kLanes), factor);
    }
  }
}

// Memory of one tile.
struct Scratch {
  BFloat16* query;    // [lines, head_dim rounded up to pairs]
  float* scores;      // [lines, chunk]
  BFloat16* weights;  // [lines, chunk]
  float* factors;     // [lines]
  uint32_t* keys;     // [chunk / 64, pairs of head_dim, 64]
  uint32_t* values;   // [value_dim / 64, chunk / 2, 64]
};

int64_t lay_out(const AttentionShape& shape, int lines, char* memory, Scratch& scratch) {
  int64_t used = 0;
  const auto take = [&]<typename T>(T*& part, int64_t count) {
    if (memory != nullptr) part = reinterpret_cast<T*>(memory + used);
    used += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
  };
  const int64_t pairs = (shape.head_dim + 1) / 2, chunk = round_up(shape.chunk, kStrip);
  take(scratch.query, lines * pairs * 2);
  take(scratch.scores, lines * chunk);
  take(scratch.weights, lines * chunk);
  take(scratch.factors, lines);
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

  // What any of the lines sees.
  Span seen_by(int first, int count) const {
    const Span early = visible(shape, tile, chunk, first / tile.num_heads);
    const Span late = visible(shape, tile, chunk, (first + count - 1) / tile.num_heads);
    return {early.begin, late.end};
  }

  const BFloat16* key_panel(int panel) const {
    const int token = panel * kLanes;
    return blocks[token / shape.block_size] + token % shape.block_size;
  }

  // Values of the panel, to read when its keys have been.
  const char* after_keys(int panel) const {
    return reinterpret_cast<const char*>(value_row(panel * kLanes));
  }

  // Keys of the next chunk, to read when values of this one have been.
  const char* after_values(int block, int column) const {
    return reinterpret_cast<const char*>(next_blocks[block] + 2 * column);
  }

  const BFloat16* value_row(int token) const {
    return blocks[token / shape.block_size] + shape.value_offset +
           token % shape.block_size * shape.value_stride;
  }
};

void gather_queries(const AttentionShape& shape, const AttentionTile& tile, BFloat16* out) {
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

void pack_keys(const Work& work) {
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
void pack_latent_keys(const Work& work) {
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

void pack_values(const Work& work) {
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

// Calls body.run<kLines, kVecs>() for the given numbers, kLines <= kMaxLines, kVecs <= kStripVecs.
template <int kLines, int kVecs, typename Body>
inline void with_sizes(int lines, int vecs, const Body& body) {
  if constexpr (kLines > 1) {
    if (lines < kLines) return with_sizes<kLines - 1, kVecs>(lines, vecs, body);
  }
  if constexpr (kVecs > 1) {
    if (vecs < kVecs) return with_sizes<kLines, kVecs - 1>(lines, vecs, body);
  }
  body.template run<kLines, kVecs>();
}

// Scores of some lines against some panels of 16 tokens.
struct ScoreStrip {
  const Work& work;
  int line;
  int panel;

  template <int kLines, int kVecs>
  void run() const {
    const AttentionShape& shape = work.shape;
    const int stride = work.query_stride(), pairs = stride / 2, whole = shape.head_dim / 2;
    const BFloat16* query = work.scratch.query + int64_t{line} * stride;
    __m512 sums[kLines][kVecs] = {};
    if (work.is_packed()) {
      const uint32_t* strip = work.scratch.keys + int64_t{panel / kStripVecs} * pairs * kStrip;
      add_pairs(query, stride, 0, pairs, PairedStrip{strip + panel % kStripVecs * kLanes}, sums);
    } else {
      const BFloat16* panels[kVecs];
      const char* ahead[kVecs];
      for (int i = 0; i < kVecs; ++i) {
        panels[i] = work.key_panel(panel + i);
        ahead[i] = work.after_keys(panel + i);
      }
      add_pairs(query, stride, 0, whole, KeyRows{panels, shape.block_size, ahead}, sums);
      add_pairs(query, stride, whole, pairs, LastKeyRow{panels, shape.block_size}, sums);
    }
    store_sums(sums, work.scratch.scores + int64_t{line} * work.score_stride() + panel * kLanes,
               work.score_stride());
  }
};

// The tokens of `seen`, some lines, some columns of the values.
struct ValueStrip {
  const Work& work;
  int line;
  int column;
  Span seen;

  template <int kLines, int kVecs>
  void run() const {
    const AttentionShape& shape = work.shape;
    const int stride = work.score_stride();
    const BFloat16* weights = work.scratch.weights + int64_t{line} * stride;
    float* out = work.tile.state.sums + int64_t{line} * shape.sum_stride + column;
    const int begin = seen.begin / 2, end = (seen.end + 1) / 2;
    __m512 sums[kLines][kVecs];
    load_sums(out, shape.sum_stride, work.scratch.factors + line, sums);
    if (work.is_packed()) {
      const uint32_t* strip =
          work.scratch.values + int64_t{column / kStrip} * (stride / 2) * kStrip + column % kStrip;
      add_pairs(weights, stride, begin, end, PairedStrip{strip}, sums);
    } else {
      add_blocks(weights, stride, begin, end, sums);
    }
    store_sums(sums, out, shape.sum_stride);
  }

 private:
  template <int kLines, int kVecs>
  void add_blocks(const BFloat16* weights, int stride, int begin, int end,
                  __m512 (&sums)[kLines][kVecs]) const {
    const AttentionShape& shape = work.shape;
    const bool all_columns = column + kVecs * kLanes <= shape.value_dim;
    const int per_block = shape.block_size / 2;
    const int whole = work.chunk.end / 2;  // the token after the last one may never be written
    for (int k = begin; k < end;) {
      const int first = k / per_block * per_block;
      int stop = first + per_block < end ? first + per_block : end;
      const bool last = stop > whole;
      if (last) stop = whole;
      const BFloat16* row = work.value_row(2 * first) + column;
      const BFloat16* some = weights + 2 * first;
      if (all_columns) {
        const char* ahead = work.after_values(k / per_block, column);
        const ValueRows rows{row, shape.value_stride, ahead};
        add_pairs(some, stride, k - first, stop - first, rows, sums);
      } else {
        add_pairs(some, stride, k - first, stop - first, in_part(row, kVecs, true), sums);
      }
      k = stop;
      if (last) {
        add_pairs(some, stride, k - first, k - first + 1, in_part(row, kVecs, false), sums);
        ++k;
      }
    }
  }

  ValueRowsInPart in_part(const BFloat16* row, int vecs, bool whole) const {
    // Columns end within a vector only in strips of one.
    const int left = work.shape.value_dim - column;
    return {row, work.shape.value_stride, vecs == 1 ? first_lanes(left) : __mmask16{0xffff}, whole};
  }
};

// 2^x for x <= 0; relative error below 2e-7.
inline __m512 exp2(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.0013264752f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0096715122f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055507337f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24022242f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69314698f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline float exp2_of(float x) { return _mm512_cvtss_f32(exp2(_mm512_set1_ps(x))); }

void bound_scores(const AttentionShape& shape, float* scores, int first, int last) {
  for (int p = first; p < last; ++p) {
    float* at = scores + p * kLanes;
    const Vec s = load(at) * (shape.scale / shape.softcap);
    store(at, vtanh(s) * (shape.softcap * kLog2E));
  }
}

// Scores of one line become weights, zero in the rest of `seen`. State and factor are of base 2.
void weigh(const Work& work, int line, Span own, Span seen) {
  const AttentionShape& shape = work.shape;
  float* scores = work.scratch.scores + int64_t{line} * work.score_stride();
  BFloat16* weights = work.scratch.weights + int64_t{line} * work.score_stride();
  float& maximum = work.tile.state.maximum[line];
  const int first = own.begin / kLanes, last = (own.end + kLanes - 1) / kLanes;
  const __m256i zero = {};
  for (int p = seen.begin / kLanes; p * kLanes < seen.end; ++p) {
    if (p >= first && p < last) continue;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + p * kLanes), zero);
  }
  work.scratch.factors[line] = 1.0f;
  if (own.begin == own.end) return;

  float scale = shape.scale * kLog2E;
  if (shape.softcap > 0) {
    bound_scores(shape, scores, first, last);
    scale = 1.0f;
  }
  const __m512 scales = _mm512_set1_ps(scale);
  const auto shown = [&](int p) {
    return static_cast<__mmask16>(first_lanes(own.end - p * kLanes) &
                                  ~first_lanes(own.begin - p * kLanes));
  };
  __m512 largest = _mm512_set1_ps(maximum);
  for (int p = first; p < last; ++p) {
    const __m512 s = _mm512_mul_ps(_mm512_loadu_ps(scores + p * kLanes), scales);
    largest = _mm512_mask_max_ps(largest, shown(p), largest, s);
  }
  const float peak = _mm512_reduce_max_ps(largest);
  const __m512 peaks = _mm512_set1_ps(peak);
  __m512 added = _mm512_setzero_ps();
  for (int p = first; p < last; ++p) {
    const __m512 s = _mm512_fmsub_ps(_mm512_loadu_ps(scores + p * kLanes), scales, peaks);
    const __m512 weight = _mm512_maskz_mov_ps(shown(p), exp2(s));
    added = _mm512_add_ps(added, weight);
    const __m256bh rounded = _mm512_cvtneps_pbh(weight);
    __builtin_memcpy(weights + p * kLanes, &rounded, sizeof(rounded));
  }
  const float factor = maximum == kHidden ? 0.0f : exp2_of(maximum - peak);
  work.scratch.factors[line] = factor;
  float& total = work.tile.state.total[line];
  total = total * factor + _mm512_reduce_add_ps(added);
  maximum = peak;
}

void attend_lines(const Work& work, int line, int count) {
  const AttentionShape& shape = work.shape;
  const Span seen = work.seen_by(line, count);
  if (seen.begin >= seen.end) return;
  const int last = (seen.end + kLanes - 1) / kLanes;
  for (int p = seen.begin / kLanes; p < last;) {
    // Strips of paired keys begin at multiples of their width.
    const int strip_end = (p / kStripVecs + 1) * kStripVecs;
    const int vecs = (strip_end < last ? strip_end : last) - p;
    with_sizes<kMaxLines, kStripVecs>(count, vecs, ScoreStrip{work, line, p});
    p += vecs;
  }
  for (int m = line; m < line + count; ++m) {
    weigh(work, m, visible(shape, work.tile, work.chunk, m / work.tile.num_heads), seen);
  }
  for (int column = 0; column < shape.value_dim;) {
    const int left = shape.value_dim - column;
    const int vecs = left >= kStrip ? kStripVecs : left >= kLanes ? left / kLanes : 1;
    with_sizes<kMaxLines, kStripVecs>(count, vecs, ValueStrip{work, line, column, seen});
    column += vecs * kLanes;
  }
}

// Finds the blocks to read after this chunk: of this tile or of the next one.
void look_ahead(Work& work, const BFloat16* head) {
  const AttentionShape& shape = work.shape;
  const AttentionTile& tile = work.tile;
  const int32_t* ids = tile.blocks + work.chunk.first_block + work.chunk.num_blocks;
  int count =
      (tile.kv_end - 1) / shape.block_size + 1 - work.chunk.first_block - work.chunk.num_blocks;
  if (count == 0) {
    ids = tile.next_blocks;
    count = tile.num_next_blocks;
    head = static_cast<const BFloat16*>(shape.cache) + tile.next_kv_head * shape.head_stride;
  }
  for (int b = 0; b < work.chunk.num_blocks; ++b) {
    work.next_blocks[b] = b < count ? head + ids[b] * shape.block_stride : work.blocks[b];
  }
}

void attend(const AttentionShape& shape, const AttentionTile& tile) {
  Scratch scratch{};
  lay_out(shape, tile.num_queries * tile.num_heads, static_cast<char*>(tile.scratch), scratch);
  gather_queries(shape, tile, scratch.query);
  const BFloat16* head =
      static_cast<const BFloat16*>(shape.cache) + tile.kv_head * shape.head_stride;
  Work work{shape, tile, scratch, {}, {}, {}};
  for (int position = tile.kv_begin / shape.chunk * shape.chunk; position < tile.kv_end;
       position += shape.chunk) {
    work.chunk = chunk_at(shape, tile, position);
    for (int b = 0; b < work.chunk.num_blocks; ++b) {
      work.blocks[b] = head + tile.blocks[work.chunk.first_block + b] * shape.block_stride;
    }
    look_ahead(work, head);
    if (work.is_packed()) {
      if (shape.latent) {
        pack_latent_keys(work);
      } else {
        pack_keys(work);
      }
      pack_values(work);
    }
    // Groups of nearly equal size: 7 lines are 4 + 3, not 6 + 1.
    const int groups = (work.lines() + kMaxLines - 1) / kMaxLines;
    for (int g = 0; g < groups; ++g) {
      const int first = work.lines() * g / groups, next = work.lines() * (g + 1) / groups;
      attend_lines(work, first, next - first);
    }
  }
}

int64_t scratch_bytes(const AttentionShape& shape, int lines) {
  Scratch scratch{};
  return lay_out(shape, lines, nullptr, scratch);
}

// Joins the states of different tokens.
void fold(int lines, int stride, const AttentionState& from, const AttentionState& into) {
  for (int m = 0; m < lines; ++m) {
    if (from.total[m] == 0) continue;  // nothing visible there
    const float peak = from.maximum[m] > into.maximum[m] ? from.maximum[m] : into.maximum[m];
    const float keep = into.total[m] == 0 ? 0.0f : exp2_of(into.maximum[m] - peak);
    const float take = exp2_of(from.maximum[m] - peak);
    into.maximum[m] = peak;
    into.total[m] = into.total[m] * keep + from.total[m] * take;
    float* sums = into.sums + int64_t{m} * stride;
    const float* added = from.sums + int64_t{m} * stride;
    for (int d = 0; d < stride; d += kWidth) {
      store(sums + d, load(sums + d) * keep + load(added + d) * take);
    }
  }
}

}  // namespace

void add_dot_attention(KernelTable& table) {
  table.attention_lines[kBFloat16] = kTileLines;
  table.attention_scratch[kBFloat16] = scratch_bytes;
  table.attend[kBFloat16] = attend;
  table.fold_attention[kBFloat16] = fold;
}

}  // namespace vllm::cpu::VLLM_ISA

#else

namespace vllm::cpu::VLLM_ISA {

void add_dot_attention(KernelTable&) {}

}  // namespace vllm::cpu::VLLM_ISA

#endif
