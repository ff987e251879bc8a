// The kernels of one instruction set, as plain functions over pointers. Nothing here knows tensors,
// and nothing that is compiled per instruction set includes a header with inline functions: the
// linker would be free to keep the copy that only the newest machines can run.
#pragma once

#include <cstdint>

namespace vllm::cpu {

inline constexpr int kMaxBlock = 256;  // tokens; block sizes divide it
inline constexpr int kMaxChunk = 512;  // tokens; chunks divide it

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kNumDTypes = 3 };

// What one call of attention has in common. Strides are in elements.
struct AttentionShape {
  int head_dim;  // of queries and keys
  int value_dim;
  int block_size;  // tokens per block
  int chunk;       // tokens per softmax update, a multiple of block_size
  bool latent;     // keys are token rows whose prefix is the value, not [head_dim, block_size]
  float scale;
  float softcap;  // 0: none
  int window;     // 0: none
  const void* cache;
  int64_t block_stride;
  int64_t head_stride;   // between KV heads of a block
  int64_t value_offset;  // from a block's keys to its values
  int64_t value_stride;  // between the values of two tokens
  int64_t query_token_stride;
  int64_t query_head_stride;
  int sum_stride;  // between the sums of two lines: value_dim and room for whole vectors
};

inline constexpr int kSumAlignment = 16;  // floats

// How much is computed at a time.
struct AttentionTiling {
  int lines;  // of a prompt
  int chunk;  // tokens per softmax update
};

// Running softmax of some lines (query token, head): what attention is folded into.
struct AttentionState {
  float* sums;     // [lines, sum_stride]: weighted values
  float* maximum;  // [lines], in the kernel's own unit
  float* total;    // [lines]: sum of weights
};

// Lines (q, h) of one tile, heads innermost, against the tokens [kv_begin, kv_end).
struct AttentionTile {
  const void* query;  // of the first token and head
  const int32_t* blocks;
  int kv_head;
  int num_queries;
  int num_heads;
  int first_position;  // of the first query
  int kv_begin;        // a multiple of chunk, unless nothing before it is visible
  int kv_end;
  // What will be read next, worth fetching while this is computed.
  const int32_t* next_blocks;
  int num_next_blocks;
  int next_kv_head;
  void* scratch;  // of attention_scratch bytes
  AttentionState state;
};

struct RowPointers {
  const void* in;
  const void* residual;  // null: none
  const void* weight;
  void* out;
  void* sum;  // in + residual, when there is one
};

inline constexpr int kMaxNormedHead = 1024;  // dimensions of a head that is normalised and rotated

struct RotaryHead {
  const void* in;
  void* out;
  const void* cos;  // [half], of the dtype of `in` or float32
  const void* sin;
  int half;
  int head_dim;
  bool interleaved;
};

inline constexpr int kPanelOutputs = 64;  // outputs of a weight that are packed together

// What becomes of a panel: its outputs, or act(gate) * up of its first and its second half.
enum class Gate : int { kNone, kSilu, kGelu, kGeluTanh };

// Some rows of a weight.
struct PanelRows {
  const void* rows;
  int64_t row_stride;  // elements
  int64_t num_rows;
  int64_t inputs;
};

// Some rows of x times one panel of a packed weight.
struct PanelProduct {
  const void* x;        // [num_rows, depth]
  const float* wide_x;  // the same in float32, dense: what is read without has_dot_products
  int64_t x_stride;     // elements
  int num_rows;
  int64_t depth;      // inputs, padded to whole pairs
  const void* panel;  // [depth, 64], bfloat16 [depth / 2, 64, 2]
  const void* bias;   // of the panel's 64 outputs, or null
  void* out;
  int64_t out_stride;  // elements
  int num_outputs;     // those that exist, of 64 or, with a gate, of 32
  bool wide;           // out is float32; not with a gate
  // Out is but the greatest output of each row, float32: NaN where there is one. Not with a gate.
  bool greatest;
  Gate gate;
};

// Some float32 rows, to be weighted and added in this order.
struct WeightedSum {
  const float* rows;      // [*, width]
  const int64_t* chosen;  // [count] of them
  const float* weights;   // [count]
  int64_t count;
  int64_t width;
  void* out;
};

inline constexpr int kLogitBlock = 64;  // logits that are skipped or looked at together

// One row of logits as draws see it: divided by a temperature.
struct ScaledRow {
  const float* logits;
  const float* maxima;  // of its blocks, not divided
  int64_t count;        // logits
  float temperature;
  float top;    // the greatest, divided
  float floor;  // what is less does not take part
};

// Gaps to the greatest logit at which sums of weights are estimated.
inline constexpr int kNumLevels = 6;
inline constexpr float kLevels[kNumLevels] = {-2.0f, -4.0f, -6.0f, -8.0f, -11.0f, -15.0f};
inline constexpr float kLeastGap = -24.5f;  // below it a weight is zero

struct RaceKey {
  uint32_t first;
  uint32_t second;
};

struct RaceEntry {
  int32_t id;
  float gap;      // to the greatest logit
  float uniform;  // the variate its noise is made of
  double score;   // its logarithm of (probability / noise), plus a constant of the row
};

// Scores in float64 tell which tokens could be the greatest in the reference's float32.
inline constexpr int kMaxRaceEntries = 16;
inline constexpr double kRaceMargin = 4e-5;  // twice what rounding can make of any that win
inline constexpr float kMostNoise = 23.0f;   // Gumbel variates are less

struct RaceState {
  float best;  // entries that score less have lost
  int count;
  RaceEntry entries[kMaxRaceEntries];
};

struct KernelTable {
  AttentionTiling (*attention_tiling[kNumDTypes])(bool latent, int block_size);
  int64_t (*attention_scratch[kNumDTypes])(const AttentionShape& shape, int lines);
  // Fills the state of a tile, which the caller has reset.
  void (*attend[kNumDTypes])(const AttentionShape& shape, const AttentionTile& tile);
  // Folds the state of some lines into that of earlier tokens.
  void (*fold_attention[kNumDTypes])(int lines, int sum_stride, const AttentionState& from,
                                     const AttentionState& into);
  // out[value_dim] = sums / total of one line.
  void (*finish_attention[kNumDTypes])(const float* sums, float total, int value_dim, void* out);
  // Keys [D] into column `offset` of a [D, P] block, values [Dv] into its row.
  void (*write_key[kNumDTypes])(const void* key, int head_dim, int block_size, int offset,
                                void* block);

  void (*rms_norm[kNumDTypes])(const RowPointers& row, int64_t width, float eps);
  void (*gemma_rms_norm[kNumDTypes])(const RowPointers& row, int64_t width, float eps);
  // [2 * width] -> [width]
  void (*silu_and_mul[kNumDTypes])(const void* in, void* out, int64_t width);
  void (*gelu_tanh_and_mul[kNumDTypes])(const void* in, void* out, int64_t width);
  // Indexed by the dtype of the head and by whether cos and sin are float32.
  void (*rotary[kNumDTypes][2])(const RotaryHead& head);
  // The same of a head that is normalised first.
  void (*normed_rotary[kNumDTypes][2])(const RotaryHead& head, const void* weight, float eps);

  void (*add_weighted[kNumDTypes])(const WeightedSum& sum);
  // Elements [begin, end) of `count` arrays, added up in this order and rounded once.
  void (*add_arrays[kNumDTypes])(const char* const* arrays, int count, int64_t begin, int64_t end,
                                 void* out);

  void (*multiply[kNumDTypes])(const PanelProduct& product);
  // Rows of a weight into outputs [first, first + count) of a panel; missing ones are zero.
  void (*pack_panel[kNumDTypes])(const PanelRows& source, int first, int count, void* panel);
  // One of them out again.
  void (*unpack_row[kNumDTypes])(const void* panel, int row, int64_t inputs, void* out);
  // Whether bfloat16 is multiplied in pairs, without widening.
  bool has_dot_products;

  // The greatest of each kLogitBlock logits; NaN where there is one.
  void (*block_maxima)(const float* logits, int64_t count, float* maxima);
  // The greatest of some disjoint sets of logits, up to count / 4 of them. Returns how many.
  int64_t (*lane_maxima)(const float* logits, int64_t count, float* maxima);
  // Sum of weights (integers) of the logits of blocks [begin, end), exact, and estimates of what
  // lies at or above each of kLevels.
  double (*mass)(const ScaledRow& row, int64_t begin, int64_t end, float* sums_above);
  void (*weights)(const float* values, int64_t count, float top, double* out);
  // Ids and values of the scaled logits of blocks [begin, end) that are at least `bound`, which is
  // finite. Returns how many.
  int64_t (*collect)(const ScaledRow& row, int64_t begin, int64_t end, float bound, int32_t* ids,
                     float* values);
  RaceKey (*race_key)(uint32_t seed_low, uint32_t seed_high, uint32_t position);
  // Enters those into the race that may win it: of blocks [begin, end), or of a list of scaled
  // logits the ones that are at least `bound`.
  void (*race)(const ScaledRow& row, const RaceKey& key, int64_t begin, int64_t end,
               RaceState& state);
  void (*race_of)(const int32_t* ids, const float* values, int64_t count, float bound, float top,
                  const RaceKey& key, RaceState& state);
  // Of blocks [begin, end): sums of exp(logit - top), and how many logits are greater than `value`.
  void (*exp_sums)(const float* logits, int64_t count, int64_t begin, int64_t end, float top,
                   float* sums);
  int64_t (*count_above)(const float* logits, const float* maxima, int64_t count, int64_t begin,
                         int64_t end, float value);
  // Logits of tokens [begin, end), begin a multiple of 32, become -inf where the mask has no bit.
  void (*mask_logits)(float* logits, const uint32_t* mask, int64_t begin, int64_t end);
};

// The table in use: the best this machine runs, unless select_isa() said otherwise.
const KernelTable& kernels();

}  // namespace vllm::cpu
