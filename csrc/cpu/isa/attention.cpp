// Attention over paged blocks: scores, running softmax, weighted values, a chunk of tokens at a
// time.
//
// Every sum runs in an order that depends on token positions alone: which other lines share a tile,
// or how a prompt was cut into steps, does not change a line's result.

#include "cpu/isa/attention_chunk.h"
#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/vec.h"

namespace vllm::cpu::VLLM_ISA {
namespace {

// Enough to use each key and value often while it is in the L1 cache, few enough that scores and
// sums stay in the L2 cache.
constexpr int kTileLines = 32;
constexpr int kPanel = 16;  // tokens scored together; block sizes are multiples of it
constexpr int kPanelVecs = kPanel / kWidth;
// Accumulators of the inner loops must stay in registers: 32 of them with AVX-512, else 16.
constexpr int kMaxLines = kWidth == 16 ? 8 : kWidth == 8 ? 4 : 2;
constexpr int kValueVecs = kWidth == 16 ? 2 : 2;
constexpr float kHidden = -__builtin_huge_valf();

// Panels scored at a time so that few lines still give enough independent sums.
constexpr int panels_for(int lines) { return lines >= kMaxLines ? 1 : kMaxLines / lines; }

// out[m][p] = sum_d q[m][d] * keys[d][p] for kLines lines and kPanels panels of 16 tokens.
template <typename T, int kLines, int kPanels>
inline void score_panels(const float* q, int head_dim, const T* const* panels, int key_stride,
                         float* out, int out_stride) {
  Vec sums[kLines][kPanels * kPanelVecs] = {};
  for (int d = 0; d < head_dim; ++d) {
    for (int i = 0; i < kPanels * kPanelVecs; ++i) {
      const Vec key =
          load(panels[i / kPanelVecs] + int64_t{d} * key_stride + (i % kPanelVecs) * kWidth);
      for (int m = 0; m < kLines; ++m) sums[m][i] += q[m * head_dim + d] * key;
    }
  }
  for (int m = 0; m < kLines; ++m) {
    for (int i = 0; i < kPanels * kPanelVecs; ++i) {
      store(out + m * out_stride + i * kWidth, sums[m][i]);
    }
  }
}

template <typename T, int kLines>
void score_lines(const float* q, int head_dim, const T* const* panels, int num_panels,
                 int key_stride, float* out, int out_stride) {
  constexpr int kStep = panels_for(kLines);
  int p = 0;
  for (; p + kStep <= num_panels; p += kStep) {
    score_panels<T, kLines, kStep>(q, head_dim, panels + p, key_stride, out + p * kPanel,
                                   out_stride);
  }
  for (; p < num_panels; ++p) {
    score_panels<T, kLines, 1>(q, head_dim, panels + p, key_stride, out + p * kPanel, out_stride);
  }
}

// One chunk of values: tokens [begin, end) of it, token t in block t / block_size.
template <typename T>
struct ValueChunk {
  const T* const* blocks;
  int block_size;
  int64_t stride;
  int begin;
  int end;
};

// sums[m][j] += sum_t weights[m][t] * value[t][j] for kLines lines and one strip of columns.
template <typename T, int kLines, int kVecs>
inline void add_strip(const ValueChunk<T>& values, int column, const float* weights,
                      int weight_stride, float* sums, int sum_stride) {
  Vec acc[kLines][kVecs];
  for (int m = 0; m < kLines; ++m) {
    for (int i = 0; i < kVecs; ++i) acc[m][i] = load(sums + m * sum_stride + i * kWidth);
  }
  for (int t = values.begin; t < values.end;) {
    const int block = t / values.block_size;
    const int block_begin = block * values.block_size;
    int stop = block_begin + values.block_size;
    if (stop > values.end) stop = values.end;
    const T* row = values.blocks[block] + (t - block_begin) * values.stride + column;
    for (; t < stop; ++t, row += values.stride) {
      for (int i = 0; i < kVecs; ++i) {
        const Vec value = load(row + i * kWidth);
        for (int m = 0; m < kLines; ++m) acc[m][i] += weights[m * weight_stride + t] * value;
      }
    }
  }
  for (int m = 0; m < kLines; ++m) {
    for (int i = 0; i < kVecs; ++i) store(sums + m * sum_stride + i * kWidth, acc[m][i]);
  }
}

// The columns that do not fill a vector.
template <typename T>
inline void add_rest(const ValueChunk<T>& values, int column, int count, const float* weights,
                     float* sums) {
  Vec acc = load_first(sums, count);
  for (int t = values.begin; t < values.end; ++t) {
    const int block = t / values.block_size;
    const T* row = values.blocks[block] + (t - block * values.block_size) * values.stride;
    acc += weights[t] * load_first(row + column, count);
  }
  store_first(sums, acc, count);
}

template <typename T, int kLines>
void add_values(const ValueChunk<T>& values, int value_dim, const float* weights, int weight_stride,
                float* sums, int sum_stride) {
  // Few lines leave registers for wider strips, which give more independent sums.
  constexpr int kVecs = kValueVecs * (kMaxLines / kLines > 1 ? 2 : 1);
  int column = 0;
  for (; column + kVecs * kWidth <= value_dim; column += kVecs * kWidth) {
    add_strip<T, kLines, kVecs>(values, column, weights, weight_stride, sums + column, sum_stride);
  }
  for (; column + kWidth <= value_dim; column += kWidth) {
    add_strip<T, kLines, 1>(values, column, weights, weight_stride, sums + column, sum_stride);
  }
  if (column == value_dim) return;
  for (int m = 0; m < kLines; ++m) {
    add_rest(values, column, value_dim - column, weights + m * weight_stride,
             sums + m * sum_stride + column);
  }
}

// Calls body.run<n>(first_line) for groups of n = kMaxLines, ..., 2, 1 lines that cover all lines.
template <int kLines, typename Body>
inline void for_line_groups(int first, int lines, const Body& body) {
  for (; first + kLines <= lines; first += kLines) body.template run<kLines>(first);
  if constexpr (kLines > 1) for_line_groups<kLines / 2>(first, lines, body);
}

template <typename T>
struct ScoreBody {
  const float* q;
  int head_dim;
  const T* const* panels;
  int num_panels;
  int key_stride;
  float* scores;
  int chunk;

  template <int kLines>
  void run(int first) const {
    score_lines<T, kLines>(q + int64_t{first} * head_dim, head_dim, panels, num_panels, key_stride,
                           scores + first * chunk, chunk);
  }
};

template <typename T>
struct ValueBody {
  ValueChunk<T> values;
  int value_dim;
  const float* weights;
  int chunk;
  float* sums;
  int sum_stride;

  template <int kLines>
  void run(int first) const {
    add_values<T, kLines>(values, value_dim, weights + first * chunk, chunk,
                          sums + int64_t{first} * sum_stride, sum_stride);
  }
};

// Scores of one line become weights; returns the factor for what was summed before.
// [begin, end) are the line's visible tokens in the chunk, of which [0, width) was scored.
inline float weigh(float* scores, int width, int begin, int end, const AttentionShape& shape,
                   float& maximum, float& total) {
  for (int i = 0; i < width; i += kWidth) {
    Vec s = load(scores + i) * shape.scale;
    if (shape.softcap > 0) s = shape.softcap * vtanh(s / shape.softcap);
    store(scores + i, s);
  }
  for (int i = 0; i < begin; ++i) scores[i] = kHidden;
  for (int i = end; i < width; ++i) scores[i] = kHidden;
  Vec largest = splat(maximum);
  for (int i = 0; i < width; i += kWidth) largest = vmax(largest, load(scores + i));
  float peak = maximum;
  for (int i = 0; i < kWidth; ++i) peak = largest[i] > peak ? largest[i] : peak;
  Vec added = {};
  for (int i = 0; i < width; i += kWidth) {
    const Vec s = load(scores + i);
    const Vec weight = s == kHidden ? Vec{} : vexp(s - peak);
    store(scores + i, weight);
    added += weight;
  }
  const float factor = maximum == kHidden ? 0.0f : vexp(splat(maximum - peak))[0];
  maximum = peak;
  total = total * factor + sum(added);
  return factor;
}

// Latent rows [block_size, head_dim] of a chunk become float32 columns, one block after another.
template <typename T>
void transpose_blocks(const T* const* blocks, int num_blocks, const AttentionShape& shape,
                      float* out) {
  for (int b = 0; b < num_blocks; ++b) {
    for (int t = 0; t < shape.block_size; ++t) {
      const T* row = blocks[b] + t * shape.value_stride;
      for_each_vector(shape.head_dim, [&](int64_t d, int n) {
        const Vec v = load_n(row + d, n);
        for (int i = 0; i < n; ++i) out[(d + i) * shape.block_size + t] = v[i];
      });
    }
    out += int64_t{shape.block_size} * shape.head_dim;
  }
}

template <typename T>
void gather_queries(const AttentionShape& shape, const AttentionTile& tile, float* q) {
  for (int i = 0; i < tile.num_queries; ++i) {
    for (int h = 0; h < tile.num_heads; ++h) {
      const T* in = static_cast<const T*>(tile.query) + i * shape.query_token_stride +
                    h * shape.query_head_stride;
      for_each_vector(shape.head_dim,
                      [&](int64_t d, int n) { store_n(q + d, load_n(in + d, n), n); });
      q += shape.head_dim;
    }
  }
}

constexpr int kMaxPanels = kMaxChunk / kPanel;

// Scores of all lines against the blocks of one chunk.
template <typename T>
void score_chunk(const AttentionShape& shape, const T* const* blocks, int num_blocks,
                 const float* q, int lines, float* scores, float* transposed) {
  const int per_block = shape.block_size / kPanel;
  if (shape.latent) {
    const float* panels[kMaxPanels];
    transpose_blocks(blocks, num_blocks, shape, transposed);
    for (int i = 0; i < num_blocks * per_block; ++i) {
      panels[i] = transposed + int64_t{i / per_block} * shape.block_size * shape.head_dim +
                  (i % per_block) * kPanel;
    }
    const ScoreBody<float> body{
        q, shape.head_dim, panels, num_blocks * per_block, shape.block_size, scores, shape.chunk};
    for_line_groups<kMaxLines>(0, lines, body);
    return;
  }
  const T* panels[kMaxPanels];
  for (int i = 0; i < num_blocks * per_block; ++i) {
    panels[i] = blocks[i / per_block] + (i % per_block) * kPanel;
  }
  const ScoreBody<T> body{q,      shape.head_dim, panels, num_blocks * per_block, shape.block_size,
                          scores, shape.chunk};
  for_line_groups<kMaxLines>(0, lines, body);
}

template <typename T>
void attend(const AttentionShape& shape, const AttentionTile& tile) {
  const int lines = tile.num_queries * tile.num_heads;
  float* q = static_cast<float*>(tile.scratch);
  float* scores = q + int64_t{lines} * shape.head_dim;
  float* transposed = scores + int64_t{lines} * shape.chunk;
  gather_queries<T>(shape, tile, q);
  const T* head = static_cast<const T*>(shape.cache) + tile.kv_head * shape.head_stride;

  for (int position = tile.kv_begin / shape.chunk * shape.chunk; position < tile.kv_end;
       position += shape.chunk) {
    const Chunk chunk = chunk_at(shape, tile, position);
    const T* blocks[kMaxPanels];
    for (int b = 0; b < chunk.num_blocks; ++b) {
      blocks[b] = head + tile.blocks[chunk.first_block + b] * shape.block_stride;
    }
    score_chunk(shape, blocks, chunk.num_blocks, q, lines, scores, transposed);

    const int width = chunk.num_blocks * shape.block_size;
    for (int m = 0; m < lines; ++m) {
      const Span seen = visible(shape, tile, chunk, m / tile.num_heads);
      const float factor = weigh(scores + m * shape.chunk, width, seen.begin, seen.end, shape,
                                 tile.state.maximum[m], tile.state.total[m]);
      float* sums = tile.state.sums + int64_t{m} * shape.sum_stride;
      if (factor != 1.0f) {
        for (int d = 0; d < shape.value_dim; ++d) sums[d] *= factor;
      }
    }

    for (int b = 0; b < chunk.num_blocks; ++b) blocks[b] += shape.value_offset;
    const ValueBody<T> body{{blocks, shape.block_size, shape.value_stride, chunk.begin, chunk.end},
                            shape.value_dim,
                            scores,
                            shape.chunk,
                            tile.state.sums,
                            shape.sum_stride};
    for_line_groups<kMaxLines>(0, lines, body);
  }
}

AttentionTiling tiling(bool latent, int block_size) {
  // Latent rows are long: a small chunk keeps them in the L2 cache.
  const int chunk = latent ? 64 : 128;
  return {kTileLines, chunk < block_size ? block_size : chunk};
}

int64_t scratch_bytes(const AttentionShape& shape, int lines) {
  int64_t floats = int64_t{lines} * (shape.head_dim + shape.chunk);
  if (shape.latent) floats += int64_t{shape.chunk} * shape.head_dim;
  return floats * int64_t{sizeof(float)};
}

void fold(int lines, int sum_stride, const AttentionState& from, const AttentionState& into) {
  for (int m = 0; m < lines; ++m) {
    if (from.total[m] == 0) continue;  // nothing visible there
    const float peak = from.maximum[m] > into.maximum[m] ? from.maximum[m] : into.maximum[m];
    const float keep = into.total[m] == 0 ? 0.0f : vexp(splat(into.maximum[m] - peak))[0];
    const float take = vexp(splat(from.maximum[m] - peak))[0];
    into.maximum[m] = peak;
    into.total[m] = into.total[m] * keep + from.total[m] * take;
    float* sums = into.sums + int64_t{m} * sum_stride;
    const float* added = from.sums + int64_t{m} * sum_stride;
    for (int d = 0; d < sum_stride; d += kWidth) {
      store(sums + d, load(sums + d) * keep + load(added + d) * take);
    }
  }
}

template <typename T>
void finish_attention(const float* sums, float total, int value_dim, void* out) {
  const float scale = 1.0f / total;
  for_each_vector(value_dim, [&](int64_t d, int n) {
    store_n(static_cast<T*>(out) + d, load_n(sums + d, n) * scale, n);
  });
}

template <typename T>
void write_key(const void* key, int head_dim, int block_size, int offset, void* block) {
  const T* in = static_cast<const T*>(key);
  T* out = static_cast<T*>(block) + offset;
  for (int d = 0; d < head_dim; ++d) out[int64_t{d} * block_size] = in[d];
}

template <typename T>
void add(KernelTable& table, DType dtype) {
  table.attention_tiling[dtype] = tiling;
  table.attention_scratch[dtype] = scratch_bytes;
  table.attend[dtype] = attend<T>;
  table.fold_attention[dtype] = fold;
  table.finish_attention[dtype] = finish_attention<T>;
  table.write_key[dtype] = write_key<T>;
}

}  // namespace

void add_attention(KernelTable& table) {
  add<float>(table, kFloat32);
  add<BFloat16>(table, kBFloat16);
  add<Float16>(table, kFloat16);
  add_dot_attention(table);
}

}  // namespace vllm::cpu::VLLM_ISA
