// Paged attention: cuts a launch into tiles, divides them over threads, puts split rows together.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Tokens whose softmax is computed by itself and joined to that of earlier ones: where a sequence
// may be cut for other threads. A multiple of every chunk, counted from the first token, so that
// results do not depend on who computes what.
constexpr int kSegment = 512;
static_assert(kSegment % kMaxChunk == 0 && kMaxChunk % kMaxBlock == 0);
// Multiplications below which claiming a task, or waking a thread for it, costs more than it saves.
constexpr int64_t kMinTaskWork = 128 * 1024;
// A task is this part of what is left for a thread: large ones, in which more is known of what will
// be read next, come first, and small ones let the threads finish together.
constexpr int kSharesPerThread = 8;
constexpr int kFewLines = 16;  // of a tile: those of decoding rows

struct Rows {
  const int32_t* query_start;
  const int32_t* seq_lens;
  const int32_t* block_table;
  int64_t num_rows;
  int64_t table_stride;

  int count(int row) const { return query_start[row + 1] - query_start[row]; }
};

struct Tile {
  int row;
  int kv_head;
  int head;  // first query head
  int num_heads;
  int query;  // first query of the row
  int num_queries;
  int kv_begin;
  int kv_end;
  int64_t state;  // its place in the workspace, -1: finished by the thread that computes it

  int lines() const { return num_queries * num_heads; }
};

// The states of some lines after a segment: from line `line` of those at `state`.
struct Part {
  int64_t state;
  int state_lines;
  int line;
};

// Lines whose segments, in their order, are the parts [first, first + count).
struct Join {
  Tile lines;
  int first;
  int count;
};

struct Work {
  std::vector<Tile> tiles;
  std::vector<int> tasks;  // task i computes the tiles [tasks[i], tasks[i + 1])
  std::vector<Join> joins;
  std::vector<Part> parts;
  int64_t state_floats = 0;
};

// Floats of the state of so many lines.
int64_t floats_of(int64_t lines, const AttentionShape& shape) {
  const int64_t floats = lines * (shape.sum_stride + 2);
  return (floats + kSumAlignment - 1) / kSumAlignment * kSumAlignment;
}

// How the lines of one KV head are cut into tiles.
struct TileSize {
  int group;
  int heads;
  int queries;

  TileSize(int num_heads, int num_kv_heads, int lines)
      : group(num_heads / num_kv_heads),
        heads(std::min(group, lines)),
        queries(std::max(1, lines / heads)) {}

  int64_t tiles_of(int num_queries) const {
    return int64_t{(group + heads - 1) / heads} * ((num_queries + queries - 1) / queries);
  }
};

class Cutter {
 public:
  Cutter(const Rows& rows, const AttentionShape& shape, const TileSize& size, int num_kv_heads)
      : rows_(rows), shape_(shape), size_(size), num_kv_heads_(num_kv_heads) {}

  Work cut() {
    int64_t num_tiles = 0;
    for (int r = 0; r < rows_.num_rows; ++r) num_tiles += size_.tiles_of(rows_.count(r));
    num_tiles *= num_kv_heads_;
    // Many tiles per thread finish together; where there are fewer, their segments are divided.
    // States of few lines are small, so that more of them may be kept.
    const int most = most_lines() <= kFewLines ? 32 : 4;
    split_ = num_threads() > 1 && num_tiles < most * num_threads();
    work_.tiles.reserve(num_tiles);
    for (int r = 0; r < rows_.num_rows;) {
      const Sharing sharing = sharing_from(r);
      for (int kv_head = 0; kv_head < num_kv_heads_; ++kv_head) {
        if (sharing.num_rows == 1) {
          add_row(r, kv_head);
        } else {
          add_rows(r, sharing, kv_head);
        }
      }
      r += sharing.num_rows;
    }
    cut_tasks();
    return std::move(work_);
  }

 private:
  int most_lines() const {
    int queries = 0;
    for (int r = 0; r < rows_.num_rows; ++r) queries = std::max(queries, rows_.count(r));
    return std::min(queries, size_.queries) * size_.heads;
  }

  // Neighbouring rows of one query whose first segments lie in the same blocks.
  struct Sharing {
    int num_rows;
    int num_segments;
  };

  Sharing sharing_from(int row) const {
    Sharing sharing{1, 0};
    if (shape_.window > 0 || size_.heads < size_.group) return sharing;
    while (row + sharing.num_rows < rows_.num_rows && sharing.num_rows < size_.queries) {
      const int common = common_segments(row, row + sharing.num_rows);
      if (common == 0 || common < sharing.num_segments) break;
      if (sharing.num_rows == 1) sharing.num_segments = common;
      ++sharing.num_rows;
    }
    return sharing;
  }

  int common_segments(int a, int b) const {
    if (rows_.count(a) != 1 || rows_.count(b) != 1) return 0;
    const int32_t* blocks_a = rows_.block_table + a * rows_.table_stride;
    const int32_t* blocks_b = rows_.block_table + b * rows_.table_stride;
    const int most = std::min(rows_.seq_lens[a], rows_.seq_lens[b]) / kSegment;
    const int per_segment = kSegment / shape_.block_size;
    int common = 0;
    while (common < most && std::equal(blocks_a, blocks_a + per_segment, blocks_b)) {
      blocks_a += per_segment;
      blocks_b += per_segment;
      ++common;
    }
    return common;
  }

  // What is shared is read once, by tiles that hold the rows as if they were queries of one: all of
  // them see all of it.
  void add_rows(int row, const Sharing& sharing, int kv_head) {
    const int head = kv_head * size_.group, group = size_.group;
    const int first_part = static_cast<int>(work_.parts.size());
    for (int s = 0; s < sharing.num_segments; ++s) {
      add_piece({row, kv_head, head, group, 0, sharing.num_rows, 0, rows_.seq_lens[row], -1}, s);
    }
    for (int i = 0; i < sharing.num_rows; ++i) {
      const Tile lines{row + i, kv_head, head, group, 0, 1, 0, rows_.seq_lens[row + i], -1};
      const int first = static_cast<int>(work_.parts.size());
      for (int s = 0; s < sharing.num_segments; ++s) {
        const Part shared = work_.parts[first_part + s];
        work_.parts.push_back({shared.state, shared.state_lines, i * group});
      }
      for (int s = sharing.num_segments; s * kSegment < lines.kv_end; ++s) {
        add_piece(lines, s);
      }
      work_.joins.push_back({lines, first, static_cast<int>(work_.parts.size()) - first});
    }
  }

  // The last queries, which see most, come first: what is left for the end is small.
  void add_row(int row, int kv_head) {
    const int count = rows_.count(row), past = rows_.seq_lens[row] - count;
    for (int h = 0; h < size_.group; h += size_.heads) {
      const int heads = std::min(size_.heads, size_.group - h);
      for (int end = count; end > 0; end -= size_.queries) {
        const int i = std::max(0, end - size_.queries), first = past + i;
        const int begin = shape_.window > 0 ? std::max(0, first - shape_.window + 1) : 0;
        const int head = kv_head * size_.group + h;
        add_tile({row, kv_head, head, heads, i, end - i, begin, past + end, -1});
      }
    }
  }

  void add_tile(const Tile& tile) {
    const int first = tile.kv_begin / kSegment, last = (tile.kv_end - 1) / kSegment;
    if (!split_ || first == last) {
      work_.tiles.push_back(tile);
      return;
    }
    work_.joins.push_back({tile, static_cast<int>(work_.parts.size()), last + 1 - first});
    for (int s = first; s <= last; ++s) add_piece(tile, s);
  }

  // What lies of a tile in a segment, with a state of its own.
  void add_piece(Tile tile, int segment) {
    tile.kv_begin = std::max(tile.kv_begin, segment * kSegment);
    tile.kv_end = std::min(tile.kv_end, (segment + 1) * kSegment);
    tile.state = work_.state_floats;
    work_.state_floats += floats_of(tile.lines(), shape_);
    work_.parts.push_back({tile.state, tile.lines(), 0});
    work_.tiles.push_back(tile);
  }

  void cut_tasks() {
    int64_t left = 0;
    for (const Tile& tile : work_.tiles) left += cost_of(tile);
    work_.tasks.push_back(0);
    for (int begin = 0, end = 0, count = static_cast<int>(work_.tiles.size()); begin < count;) {
      const int64_t share = std::max(kMinTaskWork, left / (kSharesPerThread * num_threads()));
      for (int64_t cost = 0; end < count && cost < share; ++end) {
        cost += cost_of(work_.tiles[end]);
        left -= cost_of(work_.tiles[end]);
      }
      work_.tasks.push_back(end);
      begin = end;
    }
  }

  int64_t cost_of(const Tile& tile) const {
    return int64_t{tile.lines()} * (tile.kv_end - tile.kv_begin) *
           (shape_.head_dim + shape_.value_dim);
  }

  const Rows& rows_;
  const AttentionShape& shape_;
  const TileSize size_;
  const int num_kv_heads_;
  bool split_ = false;
  Work work_;
};

// Memory of one thread, which it keeps: mapping its pages anew would cost more than many a call.
class ThreadMemory {
 public:
  // At least `bytes`, aligned to a cache line; valid until the next call.
  char* of(int64_t bytes) {
    constexpr int64_t kLine = 64;
    if (static_cast<int64_t>(memory_.size()) < bytes + kLine) memory_.resize(bytes + kLine);
    const int64_t address = reinterpret_cast<intptr_t>(memory_.data());
    return memory_.data() + (kLine - address % kLine) % kLine;
  }

 private:
  std::vector<char> memory_;
};

thread_local ThreadMemory scratch_memory;
thread_local ThreadMemory split_memory;

class Launch {
 public:
  Launch(const AttentionShape& shape, const Rows& rows, const at::Tensor& q, const at::Tensor& out,
         int num_kv_heads, int lines)
      : shape_(shape),
        rows_(rows),
        dtype_(dtype_of(q, "q")),
        kernels_(kernels()),
        element_(q.element_size()),
        q_(bytes(q)),
        out_(mutable_bytes(out)),
        num_heads_(static_cast<int>(q.size(1))) {
    const TileSize size(num_heads_, num_kv_heads, lines);
    work_ = Cutter(rows, shape, size, num_kv_heads).cut();
    for (const Tile& tile : work_.tiles) max_lines_ = std::max(max_lines_, tile.lines());
    scratch_bytes_ = (kernels_.attention_scratch[dtype_](shape, max_lines_) + 63) / 64 * 64;
  }

  void run() {
    constexpr int64_t kFloat = sizeof(float);
    const int64_t state_bytes = floats_of(max_lines_, shape_) * kFloat;
    float* states = nullptr;
    if (work_.state_floats > 0) {
      states = reinterpret_cast<float*>(split_memory.of(work_.state_floats * kFloat));
    }
    for_each_task(static_cast<int64_t>(work_.tasks.size()) - 1, [&](int64_t task) {
      char* scratch = scratch_memory.of(scratch_bytes_ + 2 * state_bytes);
      float* memory = reinterpret_cast<float*>(scratch + scratch_bytes_);
      for (int i = work_.tasks[task]; i < work_.tasks[task + 1]; ++i) {
        const Tile& tile = work_.tiles[i];
        const Tile* next = tile_after(task, i);
        if (tile.state >= 0) {
          attend(tile, next, scratch, state_in(states + tile.state, tile.lines()));
        } else {
          attend_and_finish(tile, next, scratch, memory);
        }
      }
    });
    const int64_t num_joins = static_cast<int64_t>(work_.joins.size());
    const int64_t floats = work_.state_floats / std::max<int64_t>(1, num_joins);
    parallel_for(0, num_joins, kMinTaskWork / std::max<int64_t>(1, floats),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t j = begin; j < end; ++j) join(work_.joins[j], states);
                 });
  }

 private:
  // What this thread is likely to compute after tile `i`, the others being as fast; or null.
  const Tile* tile_after(int64_t task, int i) const {
    if (i + 1 < work_.tasks[task + 1]) return &work_.tiles[i + 1];
    const int64_t later = task + num_threads();
    return later + 1 < static_cast<int64_t>(work_.tasks.size()) ? &work_.tiles[work_.tasks[later]]
                                                                : nullptr;
  }

  // Folds the segments of some lines in their order.
  void join(const Join& join, float* states) const {
    const AttentionState into = state_of(work_.parts[join.first], states);
    for (int p = 1; p < join.count; ++p) {
      fold(join.lines, state_of(work_.parts[join.first + p], states), into);
    }
    finish(join.lines, into);
  }

  AttentionState state_of(const Part& part, float* states) const {
    const AttentionState all = state_in(states + part.state, part.state_lines);
    return {all.sums + int64_t{part.line} * shape_.sum_stride, all.maximum + part.line,
            all.total + part.line};
  }

  AttentionState state_in(float* memory, int lines) const {
    float* maximum = memory + int64_t{lines} * shape_.sum_stride;
    return {memory, maximum, maximum + lines};
  }

  // All segments of a tile. `memory` has room for two states.
  void attend_and_finish(const Tile& tile, const Tile* next_tile, char* scratch,
                         float* memory) const {
    const AttentionState state = state_in(memory, max_lines_);
    const AttentionState next = state_in(memory + floats_of(max_lines_, shape_), max_lines_);
    for (int begin = tile.kv_begin; begin < tile.kv_end;) {
      Tile segment = tile;
      segment.kv_begin = begin;
      segment.kv_end = std::min(tile.kv_end, (begin / kSegment + 1) * kSegment);
      Tile rest = tile;
      rest.kv_begin = segment.kv_end;
      const Tile* following = segment.kv_end < tile.kv_end ? &rest : next_tile;
      attend(segment, following, scratch, begin == tile.kv_begin ? state : next);
      if (begin > tile.kv_begin) fold(tile, next, state);
      begin = segment.kv_end;
    }
    finish(tile, state);
  }

  // One segment or a part of it, before `next`.
  void attend(const Tile& tile, const Tile* next, char* scratch,
              const AttentionState& state) const {
    const int64_t lines = tile.lines();
    std::fill_n(state.sums, lines * shape_.sum_stride, 0.0f);
    std::fill_n(state.maximum, lines, -std::numeric_limits<float>::infinity());
    std::fill_n(state.total, lines, 0.0f);
    const int64_t token = rows_.query_start[tile.row] + tile.query;
    AttentionTile arguments{};
    arguments.query =
        q_ + (token * shape_.query_token_stride + tile.head * shape_.query_head_stride) * element_;
    arguments.blocks = rows_.block_table + tile.row * rows_.table_stride;
    arguments.kv_head = tile.kv_head;
    arguments.num_queries = tile.num_queries;
    arguments.num_heads = tile.num_heads;
    arguments.first_position = rows_.seq_lens[tile.row] - rows_.count(tile.row) + tile.query;
    arguments.kv_begin = tile.kv_begin;
    arguments.kv_end = tile.kv_end;
    if (next != nullptr) {
      const int first = next->kv_begin / shape_.block_size;
      arguments.next_blocks = rows_.block_table + next->row * rows_.table_stride + first;
      arguments.num_next_blocks = (next->kv_end - 1) / shape_.block_size + 1 - first;
      arguments.next_kv_head = next->kv_head;
    }
    arguments.scratch = scratch;
    arguments.state = state;
    kernels_.attend[dtype_](shape_, arguments);
  }

  void fold(const Tile& tile, const AttentionState& from, const AttentionState& into) const {
    kernels_.fold_attention[dtype_](tile.lines(), shape_.sum_stride, from, into);
  }

  void finish(const Tile& tile, const AttentionState& state) const {
    for (int m = 0; m < tile.lines(); ++m) {
      const int64_t token = rows_.query_start[tile.row] + tile.query + m / tile.num_heads;
      const int64_t head = tile.head + m % tile.num_heads;
      kernels_.finish_attention[dtype_](
          state.sums + int64_t{m} * shape_.sum_stride, state.total[m], shape_.value_dim,
          out_ + (token * num_heads_ + head) * shape_.value_dim * element_);
    }
  }

  const AttentionShape& shape_;
  const Rows& rows_;
  const DType dtype_;
  const KernelTable& kernels_;
  const int64_t element_;
  const char* q_;
  char* out_;
  const int num_heads_;
  Work work_;
  int max_lines_ = 1;
  int64_t scratch_bytes_ = 0;
};

// Checks what would otherwise read outside of a tensor, and gives the rows as pointers.
Rows checked_rows(const at::Tensor& q, const at::Tensor& query_start, const at::Tensor& seq_lens,
                  const at::Tensor& block_table, int64_t num_blocks, const AttentionShape& shape) {
  VLLM_CHECK_RANK(query_start, 1);
  VLLM_CHECK_RANK(seq_lens, 1);
  VLLM_CHECK_RANK(block_table, 2);
  const int64_t num_rows = seq_lens.size(0);
  VLLM_CHECK_SIZE(query_start, 0, num_rows + 1);
  VLLM_CHECK_SIZE(block_table, 0, num_rows);
  VLLM_CHECK_DTYPE(query_start, at::kInt);
  VLLM_CHECK_DTYPE(seq_lens, at::kInt);
  VLLM_CHECK_DTYPE(block_table, at::kInt);
  VLLM_CHECK_CONTIGUOUS(query_start);
  VLLM_CHECK_CONTIGUOUS(seq_lens);
  VLLM_CHECK_DENSE_ROWS(block_table);
  const Rows rows{query_start.const_data_ptr<int32_t>(), seq_lens.const_data_ptr<int32_t>(),
                  block_table.const_data_ptr<int32_t>(), num_rows, block_table.stride(0)};
  TORCH_CHECK(rows.query_start[0] == 0 && rows.query_start[num_rows] <= q.size(0),
              "query_start must go from 0 to at most ", q.size(0), ", goes from ",
              rows.query_start[0], " to ", rows.query_start[num_rows]);
  for (int64_t r = 0; r < num_rows; ++r) {
    const int count = rows.query_start[r + 1] - rows.query_start[r];
    const int length = rows.seq_lens[r];
    if (count == 0) continue;
    TORCH_CHECK(0 < count && count <= length, "row ", r, " has ", count, " queries of seq_lens ",
                length);
    const int used = (length + shape.block_size - 1) / shape.block_size;
    TORCH_CHECK(used <= block_table.size(1), "row ", r, " needs ", used,
                " blocks, block_table has ", block_table.size(1));
    const int past = length - count;
    const int begin = shape.window > 0 ? std::max(0, past - shape.window + 1) : 0;
    for (int b = begin / shape.block_size; b < used; ++b) {
      const int id = rows.block_table[r * rows.table_stride + b];
      TORCH_CHECK(0 <= id && id < num_blocks, "block_table[", r, ", ", b, "] = ", id,
                  " is outside the cache of ", num_blocks, " blocks");
    }
  }
  return rows;
}

// [T, N, value_dim]; tokens of no row, which padding may add, give zeros.
at::Tensor output(const at::Tensor& q, const Rows& rows, int64_t value_dim) {
  at::Tensor out = at::empty({q.size(0), q.size(1), value_dim}, q.options());
  const int64_t used = rows.query_start[rows.num_rows];
  if (used < q.size(0)) out.narrow(0, used, q.size(0) - used).zero_();
  return out;
}

int sum_stride(int64_t value_dim) {
  return static_cast<int>((value_dim + kSumAlignment - 1) / kSumAlignment * kSumAlignment);
}

AttentionTiling tiling_of(const at::Tensor& q, bool latent, int64_t block_size) {
  return kernels().attention_tiling[dtype_of(q, "q")](latent, static_cast<int>(block_size));
}

void check_block_size(int64_t block_size) {
  TORCH_CHECK(block_size >= 16 && kMaxBlock % block_size == 0,
              "cache must have 16, 32, 64, 128 or 256 tokens per block, has ", block_size);
}

}  // namespace

at::Tensor paged_attention(const at::Tensor& q, const at::Tensor& cache,
                           const at::Tensor& query_start, const at::Tensor& seq_lens,
                           const at::Tensor& block_table, int64_t value_dim, double scale,
                           int64_t window, double softcap) {
  VLLM_CHECK_RANK(q, 3);
  VLLM_CHECK_RANK(cache, 3);
  VLLM_CHECK_DTYPE(cache, q.scalar_type());
  VLLM_CHECK_DENSE_ROWS(q);
  VLLM_CHECK_DENSE_ROWS(cache);
  const int64_t head_dim = q.size(2), num_kv_heads = cache.size(1);
  TORCH_CHECK(num_kv_heads > 0 && q.size(1) % num_kv_heads == 0, "q has ", q.size(1),
              " heads, which do not divide over the cache's ", num_kv_heads);
  TORCH_CHECK(cache.size(2) % (head_dim + value_dim) == 0, "cache of shape ", cache.sizes(),
              " does not hold heads of ", head_dim, " + ", value_dim);
  const int64_t block_size = cache.size(2) / (head_dim + value_dim);
  check_block_size(block_size);
  const AttentionTiling tiling = tiling_of(q, false, block_size);
  const AttentionShape shape{.head_dim = static_cast<int>(head_dim),
                             .value_dim = static_cast<int>(value_dim),
                             .block_size = static_cast<int>(block_size),
                             .chunk = tiling.chunk,
                             .latent = false,
                             .scale = static_cast<float>(scale),
                             .softcap = static_cast<float>(softcap),
                             .window = static_cast<int>(window),
                             .cache = bytes(cache),
                             .block_stride = cache.stride(0),
                             .head_stride = cache.stride(1),
                             .value_offset = head_dim * block_size,
                             .value_stride = value_dim,
                             .query_token_stride = q.stride(0),
                             .query_head_stride = q.stride(1),
                             .sum_stride = sum_stride(value_dim)};
  const Rows rows = checked_rows(q, query_start, seq_lens, block_table, cache.size(0), shape);
  const at::Tensor out = output(q, rows, value_dim);
  Launch(shape, rows, q, out, static_cast<int>(num_kv_heads), tiling.lines).run();
  return out;
}

at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& cache,
                         const at::Tensor& query_start, const at::Tensor& seq_lens,
                         const at::Tensor& block_table, int64_t latent_dim, double scale,
                         int64_t window, double softcap) {
  VLLM_CHECK_RANK(q, 3);
  VLLM_CHECK_RANK(cache, 3);
  VLLM_CHECK_DTYPE(cache, q.scalar_type());
  VLLM_CHECK_SIZE(cache, 2, q.size(2));
  VLLM_CHECK_DENSE_ROWS(q);
  VLLM_CHECK_DENSE_ROWS(cache);
  TORCH_CHECK(0 < latent_dim && latent_dim <= q.size(2), "latent_dim ", latent_dim,
              " must be positive and at most ", q.size(2));
  const int64_t block_size = cache.size(1);
  check_block_size(block_size);
  const AttentionTiling tiling = tiling_of(q, true, block_size);
  const AttentionShape shape{.head_dim = static_cast<int>(q.size(2)),
                             .value_dim = static_cast<int>(latent_dim),
                             .block_size = static_cast<int>(block_size),
                             .chunk = tiling.chunk,
                             .latent = true,
                             .scale = static_cast<float>(scale),
                             .softcap = static_cast<float>(softcap),
                             .window = static_cast<int>(window),
                             .cache = bytes(cache),
                             .block_stride = cache.stride(0),
                             .head_stride = 0,
                             .value_offset = 0,
                             .value_stride = cache.stride(1),
                             .query_token_stride = q.stride(0),
                             .query_head_stride = q.stride(1),
                             .sum_stride = sum_stride(latent_dim)};
  const Rows rows = checked_rows(q, query_start, seq_lens, block_table, cache.size(0), shape);
  const at::Tensor out = output(q, rows, latent_dim);
  Launch(shape, rows, q, out, 1, tiling.lines).run();
  return out;
}

}  // namespace vllm::cpu
