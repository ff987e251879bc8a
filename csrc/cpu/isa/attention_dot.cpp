// Attention in bfloat16 by dot products of pairs: both of neighbouring dimensions (scores) and of
// neighbouring tokens (weighted values) are multiplied and added by one instruction.
//
// Tiles of many lines pair the keys and values of a chunk once, into scratch memory; tiles of few
// lines pair them in registers. Either way every sum takes the same pairs in the same order.

#include "cpu/isa/kernels_of_isa.h"

#if defined(__AVX512BF16__)

#include "cpu/isa/attention_pairs.h"

namespace vllm::cpu::VLLM_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kHidden = -__builtin_huge_valf();
// A whole number of groups of kMaxLines for 1, 2, 3, 4 and 8 heads; with a chunk of kMaxChunk
// tokens, its pairs and the sums of head_dim 128 half a megabyte, which a core's L2 cache holds.
constexpr int kTileLines = 192;
// Latent rows are long: fewer of them fit that cache.
constexpr int kLatentLines = 126;
constexpr int kLatentChunk = 64;

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

// Lines computed together, and what they share of one chunk.
struct Group {
  int line;
  int count;
  Span seen;   // by any of them
  Span whole;  // whole strips that all of them see, where scores need neither masks nor bounds
  __m512 largest[kMaxLines];  // scores of `whole`
  float factors[kMaxLines];   // for what was summed before this chunk

  Group(const Work& work, int first, int num_lines) : line(first), count(num_lines) {
    const Span early = work.seen_by(first), late = work.seen_by(first + num_lines - 1);
    seen = {early.begin, late.end};
    whole = {0, 0};
    if (work.shape.softcap == 0 && work.shape.scale > 0) {
      const int begin = round_up(late.begin, kStrip), end = early.end / kStrip * kStrip;
      if (begin < end) whole = {begin, end};
    }
    for (int m = 0; m < kMaxLines; ++m) largest[m] = _mm512_set1_ps(kHidden);
  }
};

// Scores of a group against some panels of 16 tokens.
struct ScoreStrip {
  const Work& work;
  Group& group;
  int panel;

  template <int kLines, int kVecs>
  void run() const {
    const AttentionShape& shape = work.shape;
    const int stride = work.query_stride(), pairs = stride / 2, all = shape.head_dim / 2;
    const BFloat16* query = work.scratch.query + int64_t{group.line} * stride;
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
      add_pairs(query, stride, 0, all, KeyRows{panels, shape.block_size, ahead}, sums);
      add_pairs(query, stride, all, pairs, LastKeyRow{panels, shape.block_size}, sums);
    }
    store_sums(sums, work.scratch.scores + panel * kLanes, work.score_stride());
    if (panel * kLanes < group.whole.begin || panel * kLanes >= group.whole.end) return;
    for (int m = 0; m < kLines; ++m) {
      for (int i = 0; i < kVecs; ++i) {
        group.largest[m] = _mm512_max_ps(group.largest[m], sums[m][i]);
      }
    }
  }
};

// The tokens a group sees, some columns of the values.
struct ValueStrip {
  const Work& work;
  const Group& group;
  int column;
  bool is_first;  // nothing was summed before this chunk

  template <int kLines, int kVecs>
  void run() const {
    const AttentionShape& shape = work.shape;
    const int stride = work.score_stride();
    const BFloat16* weights = work.scratch.weights;
    float* out = work.tile.state.sums + int64_t{group.line} * shape.sum_stride + column;
    const int begin = group.seen.begin / 2, end = (group.seen.end + 1) / 2;
    __m512 sums[kLines][kVecs] = {};
    if (!is_first) load_scaled(out, sums);
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
  void load_scaled(const float* in, __m512 (&sums)[kLines][kVecs]) const {
    for (int m = 0; m < kLines; ++m) {
      const __m512 factor = _mm512_set1_ps(group.factors[m]);
      const float* line = in + int64_t{m} * work.shape.sum_stride;
      for (int i = 0; i < kVecs; ++i) {
        sums[m][i] = _mm512_mul_ps(_mm512_loadu_ps(line + i * kLanes), factor);
      }
    }
  }

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

// 2^x for x <= 0; relative error below 3e-6, far below what rounding a weight costs.
inline __m512 exp2(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.0095828526f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055906430f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24024099f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69312419f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline float exp2_of(float x) { return _mm512_cvtss_f32(exp2(_mm512_set1_ps(x))); }

// The softmax of a group's scores, a line at a time.
class Softmax {
 public:
  Softmax(const Work& work, Group& group)
      : work_(work),
        group_(group),
        scale_(work.shape.scale * kLog2E),
        first_(group.seen.begin / kLanes),
        last_((group.seen.end + kLanes - 1) / kLanes),
        whole_first_(group.whole.end > 0 ? group.whole.begin / kLanes : last_),
        whole_last_(group.whole.end > 0 ? group.whole.end / kLanes : last_) {}

  // Scores become weights, zero where a line does not see what others do. State and factors are of
  // base 2.
  void run() {
    if (work_.shape.softcap > 0 || work_.shape.scale <= 0) finish_scores();
    __m512 peaks[kMaxLines];
    float added[kMaxLines];
    for (int m = 0; m < group_.count; ++m) peaks[m] = _mm512_set1_ps(peak_of(m));
    for (int m = 0; m < group_.count; ++m) added[m] = weigh(m, peaks[m]);
    for (int m = 0; m < group_.count; ++m) {
      float& maximum = work_.tile.state.maximum[group_.line + m];
      float& total = work_.tile.state.total[group_.line + m];
      const float peak = _mm512_cvtss_f32(peaks[m]);
      group_.factors[m] = maximum == peak      ? 1.0f
                          : maximum == kHidden ? 0.0f
                                               : exp2_of(maximum - peak);
      total = total * group_.factors[m] + added[m];
      maximum = peak;
    }
  }

 private:
  float* scores_of(int m) const { return work_.scratch.scores + m * work_.score_stride(); }

  __mmask16 shown(const Span& own, int p) const {
    return static_cast<__mmask16>(first_lanes(own.end - p * kLanes) &
                                  ~first_lanes(own.begin - p * kLanes));
  }

  // Scores whose greatest is not found before they are scaled.
  void finish_scores() {
    const float softcap = work_.shape.softcap;
    for (int m = 0; m < group_.count; ++m) {
      for (int p = first_; p < last_; ++p) {
        float* at = scores_of(m) + p * kLanes;
        const Vec s = load(at);
        store(at, softcap > 0 ? vtanh(s * (work_.shape.scale / softcap)) * (softcap * kLog2E)
                              : s * scale_);
      }
    }
    scale_ = 1.0f;
  }

  float peak_of(int m) const {
    const Span own = work_.seen_by(group_.line + m);
    const float* scores = scores_of(m);
    __m512 largest = group_.largest[m];
    const auto look = [&](int p) {
      const __m512 s = _mm512_loadu_ps(scores + p * kLanes);
      largest = _mm512_mask_max_ps(largest, shown(own, p), largest, s);
    };
    for (int p = first_; p < whole_first_; ++p) look(p);
    for (int p = whole_last_; p < last_; ++p) look(p);
    const float peak = _mm512_reduce_max_ps(largest) * scale_;
    const float before = work_.tile.state.maximum[group_.line + m];
    return peak > before ? peak : before;
  }

  // Returns the sum of the weights.
  float weigh(int m, __m512 peak) const {
    const Span own = work_.seen_by(group_.line + m);
    const float* scores = scores_of(m);
    BFloat16* weights = work_.scratch.weights + m * work_.score_stride();
    const __m512 scale = _mm512_set1_ps(scale_);
    __m512 added = _mm512_setzero_ps();
    const auto weight_of = [&](int p) {
      return exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + p * kLanes), scale, peak));
    };
    const auto masked = [&](int p) {
      const __m512 weight = _mm512_maskz_mov_ps(shown(own, p), weight_of(p));
      added = _mm512_add_ps(added, weight);
      const __m256bh rounded = _mm512_cvtneps_pbh(weight);
      __builtin_memcpy(weights + p * kLanes, &rounded, sizeof(rounded));
    };
    for (int p = first_; p < whole_first_; ++p) masked(p);
    for (int p = whole_first_; p < whole_last_; p += 2) {
      const __m512 low = weight_of(p), high = weight_of(p + 1);
      added = _mm512_add_ps(_mm512_add_ps(added, low), high);
      _mm512_storeu_si512(weights + p * kLanes, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    for (int p = whole_last_; p < last_; ++p) masked(p);
    return _mm512_reduce_add_ps(added);
  }

  const Work& work_;
  Group& group_;
  float scale_;
  const int first_;  // panels of 16 tokens that are seen
  const int last_;
  const int whole_first_;
  const int whole_last_;
};

void attend_lines(const Work& work, int line, int count, bool is_first) {
  const AttentionShape& shape = work.shape;
  Group group(work, line, count);
  if (group.seen.begin < group.seen.end) {
    const int last = (group.seen.end + kLanes - 1) / kLanes;
    for (int p = group.seen.begin / kLanes; p < last;) {
      // Strips of paired keys begin at multiples of their width.
      const int strip_end = (p / kStripVecs + 1) * kStripVecs;
      const int vecs = (strip_end < last ? strip_end : last) - p;
      with_sizes<kMaxLines, kStripVecs>(count, vecs, ScoreStrip{work, group, p});
      p += vecs;
    }
    Softmax(work, group).run();
  } else if (!is_first) {
    return;
  }
  for (int column = 0; column < shape.value_dim;) {
    const int left = shape.value_dim - column;
    const int vecs = left >= kStrip ? kStripVecs : left >= kLanes ? left / kLanes : 1;
    with_sizes<kMaxLines, kStripVecs>(count, vecs, ValueStrip{work, group, column, is_first});
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
  const int start = tile.kv_begin / shape.chunk * shape.chunk;
  for (int position = start; position < tile.kv_end; position += shape.chunk) {
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
      attend_lines(work, first, next - first, position == start);
    }
  }
}

AttentionTiling tiling(bool latent, int block_size) {
  if (!latent) return {kTileLines, kMaxChunk};
  return {kLatentLines, kLatentChunk < block_size ? block_size : kLatentChunk};
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
  table.attention_tiling[kBFloat16] = tiling;
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
