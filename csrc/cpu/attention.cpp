// Paged attention: cuts a launch into tiles, divides them over threads, puts split rows together.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/ops.h"

namespace vllm::cpu {
namespace {

// Lines of a tile: enough to use each key and value often while it is in the L1 cache, few enough
// that scores and sums stay in the L2 cache.
constexpr int kTileLines = 32;
// A row is cut along its tokens only while there are idle threads, in pieces of at least this many.
constexpr int kMinSplitTokens = 512;
// Multiplications below which waking a thread costs more than it saves.
constexpr int64_t kMinThreadWork = 256 * 1024;

struct Rows {
  const int32_t* query_start;
  const int32_t* seq_lens;
  const int32_t* block_table;
  int64_t num_rows;
  int64_t table_stride;
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
  int split;  // index of its state in the workspace, -1: finished by the thread that computes it
};

// Tiles [first, first + count) hold pieces of the same lines.
struct Join {
  int first;
  int count;
};

struct Work {
  std::vector<Tile> tiles;
  std::vector<Join> joins;
  int num_splits = 0;
  int64_t cost = 0;
};

Work cut(const Rows& rows, const AttentionShape& shape, int num_heads, int num_kv_heads) {
  const int group = num_heads / num_kv_heads;
  const int tile_heads = std::min(group, kTileLines);
  const int tile_queries = std::max(1, kTileLines / tile_heads);
  std::vector<Tile> whole;
  int64_t cost = 0;
  for (int r = 0; r < rows.num_rows; ++r) {
    const int count = rows.query_start[r + 1] - rows.query_start[r];
    const int past = rows.seq_lens[r] - count;
    for (int kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
      for (int h = 0; h < group; h += tile_heads) {
        for (int i = 0; i < count; i += tile_queries) {
          const int heads = std::min(tile_heads, group - h);
          const int queries = std::min(tile_queries, count - i);
          const int first = past + i;
          const int begin = shape.window > 0 ? std::max(0, first - shape.window + 1) : 0;
          const int end = first + queries;
          whole.push_back({r, kv_head, kv_head * group + h, heads, i, queries, begin, end, -1});
          cost += int64_t{queries} * heads * (end - begin) * (shape.head_dim + shape.value_dim);
        }
      }
    }
  }
  Work work;
  work.cost = cost;
  // Several pieces per thread, so that they finish together; prompts have enough tiles as they are.
  const int wanted = 4 * at::get_num_threads();
  const bool idle = at::get_num_threads() > 1 && static_cast<int>(whole.size()) < wanted;
  const int parts = idle && !whole.empty() ? wanted / static_cast<int>(whole.size()) : 1;
  for (const Tile& tile : whole) {
    const int tokens = tile.kv_end - tile.kv_begin;
    const int pieces = std::max(1, std::min(parts, tokens / kMinSplitTokens));
    if (pieces == 1) {
      work.tiles.push_back(tile);
      continue;
    }
    const int first_chunk = tile.kv_begin / shape.chunk;
    const int chunks = (tile.kv_end - 1) / shape.chunk + 1 - first_chunk;
    work.joins.push_back({static_cast<int>(work.tiles.size()), pieces});
    for (int p = 0; p < pieces; ++p) {
      Tile piece = tile;
      piece.kv_begin = std::max(tile.kv_begin, (first_chunk + chunks * p / pieces) * shape.chunk);
      piece.kv_end = std::min(tile.kv_end, (first_chunk + chunks * (p + 1) / pieces) * shape.chunk);
      piece.split = work.num_splits++;
      work.tiles.push_back(piece);
    }
  }
  return work;
}

// Calls body(i) for all i < count; threads take the next one when they are done with theirs, as
// tiles differ a lot in size.
template <typename Body>
void for_each_task(int count, int64_t cost, const Body& body) {
  const int64_t useful = std::max<int64_t>(1, cost / kMinThreadWork);
  const int threads =
      static_cast<int>(std::min<int64_t>({at::get_num_threads(), useful, int64_t{count}}));
  std::atomic<int> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int i = next++; i < count; i = next++) body(i);
  });
}

class Launch {
 public:
  Launch(const AttentionShape& shape, const Rows& rows, const at::Tensor& q, const at::Tensor& out,
         int num_kv_heads)
      : shape_(shape),
        rows_(rows),
        dtype_(dtype_of(q, "q")),
        element_(q.element_size()),
        q_(bytes(q)),
        out_(mutable_bytes(out)),
        num_heads_(static_cast<int>(q.size(1))),
        work_(cut(rows, shape, num_heads_, num_kv_heads)),
        state_floats_(int64_t{kTileLines} * (shape.value_dim + 2)) {}

  void run() {
    std::vector<float> splits(work_.num_splits * state_floats_);
    for_each_task(static_cast<int>(work_.tiles.size()), work_.cost, [&](int i) {
      const Tile& tile = work_.tiles[i];
      const int64_t lines = tile.num_queries * tile.num_heads;
      int64_t floats = lines * (shape_.head_dim + shape_.chunk);
      if (shape_.latent) floats += int64_t{shape_.chunk} * shape_.head_dim;
      thread_local std::vector<float> scratch;
      if (static_cast<int64_t>(scratch.size()) < floats + state_floats_) {
        scratch.resize(floats + state_floats_);
      }
      float* memory =
          tile.split >= 0 ? splits.data() + tile.split * state_floats_ : scratch.data() + floats;
      const AttentionState state = state_in(memory);
      std::fill_n(state.sums, lines * shape_.value_dim, 0.0f);
      std::fill_n(state.maximum, lines, -std::numeric_limits<float>::infinity());
      std::fill_n(state.total, lines, 0.0f);
      attend(tile, scratch.data(), state);
      if (tile.split < 0) finish(tile, state);
    });
    for (const Join& join : work_.joins) {
      const Tile& tile = work_.tiles[join.first];
      float* memory = splits.data() + tile.split * state_floats_;
      for (int p = 1; p < join.count; ++p) {
        fold(tile.num_queries * tile.num_heads, state_in(memory + p * state_floats_),
             state_in(memory));
      }
      finish(tile, state_in(memory));
    }
  }

 private:
  AttentionState state_in(float* memory) const {
    float* maximum = memory + int64_t{kTileLines} * shape_.value_dim;
    return {memory, maximum, maximum + kTileLines};
  }

  void attend(const Tile& tile, float* scratch, const AttentionState& state) const {
    const int64_t token = rows_.query_start[tile.row] + tile.query;
    const int count = rows_.query_start[tile.row + 1] - rows_.query_start[tile.row];
    AttentionTile arguments;
    arguments.query =
        q_ + (token * shape_.query_token_stride + tile.head * shape_.query_head_stride) * element_;
    arguments.blocks = rows_.block_table + tile.row * rows_.table_stride;
    arguments.kv_head = tile.kv_head;
    arguments.num_queries = tile.num_queries;
    arguments.num_heads = tile.num_heads;
    arguments.first_position = rows_.seq_lens[tile.row] - count + tile.query;
    arguments.kv_begin = tile.kv_begin;
    arguments.kv_end = tile.kv_end;
    arguments.scratch = scratch;
    arguments.state = state;
    kernels().attend[dtype_](shape_, arguments);
  }

  void fold(int lines, const AttentionState& from, const AttentionState& into) const {
    for (int m = 0; m < lines; ++m) {
      if (from.total[m] == 0) continue;  // nothing visible in that piece
      const float peak = std::max(from.maximum[m], into.maximum[m]);
      const float keep = into.total[m] == 0 ? 0.0f : std::exp(into.maximum[m] - peak);
      const float take = std::exp(from.maximum[m] - peak);
      into.maximum[m] = peak;
      into.total[m] = into.total[m] * keep + from.total[m] * take;
      float* a = into.sums + int64_t{m} * shape_.value_dim;
      const float* b = from.sums + int64_t{m} * shape_.value_dim;
      for (int d = 0; d < shape_.value_dim; ++d) a[d] = a[d] * keep + b[d] * take;
    }
  }

  void finish(const Tile& tile, const AttentionState& state) const {
    for (int m = 0; m < tile.num_queries * tile.num_heads; ++m) {
      const int64_t token = rows_.query_start[tile.row] + tile.query + m / tile.num_heads;
      const int64_t head = tile.head + m % tile.num_heads;
      kernels().finish_attention[dtype_](
          state.sums + int64_t{m} * shape_.value_dim, state.total[m], shape_.value_dim,
          out_ + (token * num_heads_ + head) * shape_.value_dim * element_);
    }
  }

  const AttentionShape& shape_;
  const Rows& rows_;
  const DType dtype_;
  const int64_t element_;
  const char* q_;
  char* out_;
  const int num_heads_;
  const Work work_;
  const int64_t state_floats_;
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

void check_block_size(int64_t block_size) {
  TORCH_CHECK(block_size >= 16 && kMaxChunk % block_size == 0,
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
  const AttentionShape shape{.head_dim = static_cast<int>(head_dim),
                             .value_dim = static_cast<int>(value_dim),
                             .block_size = static_cast<int>(block_size),
                             .chunk = std::max(128, static_cast<int>(block_size)),
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
                             .query_head_stride = q.stride(1)};
  const Rows rows = checked_rows(q, query_start, seq_lens, block_table, cache.size(0), shape);
  const at::Tensor out = output(q, rows, value_dim);
  Launch(shape, rows, q, out, static_cast<int>(num_kv_heads)).run();
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
  const AttentionShape shape{.head_dim = static_cast<int>(q.size(2)),
                             .value_dim = static_cast<int>(latent_dim),
                             .block_size = static_cast<int>(block_size),
                             // Latent rows are long: a small chunk keeps them in the L2 cache.
                             .chunk = std::max(32, static_cast<int>(block_size)),
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
                             .query_head_stride = q.stride(1)};
  const Rows rows = checked_rows(q, query_start, seq_lens, block_table, cache.size(0), shape);
  const at::Tensor out = output(q, rows, latent_dim);
  Launch(shape, rows, q, out, 1).run();
  return out;
}

}  // namespace vllm::cpu
