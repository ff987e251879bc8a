#include "cpu/collectives.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/ranks.h"

namespace vllm::cpu {
namespace {

// From here on each rank adds up its share, and all take the sums from each other, rather than
// adding up everything themselves.
constexpr int64_t kShareBytes = 64 << 10;
constexpr int64_t kGrain = 16 * 1024;  // elements a thread should at least have

void copy(char* to, const char* from, int64_t count, int64_t element_bytes) {
  parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * element_bytes, from + begin * element_bytes,
                (end - begin) * element_bytes);
  });
}

// Elements [begin, end) of what all ranks show, added up, to `out`, where the first of them goes.
// `own` is what this rank shows, which is nearer than its area.
void add_areas(const Ranks& ranks, DType dtype, int64_t element_bytes, const char* own,
               int64_t begin, int64_t end, char* out) {
  const char* arrays[kMaxRanks];
  for (int64_t rank = 0; rank < ranks.size(); ++rank) {
    arrays[rank] = rank == ranks.rank() ? own : ranks.area(rank);
  }
  const auto add = kernels().add_arrays[dtype];
  parallel_for(begin, end, kGrain, [&](int64_t first, int64_t last) {
    add(arrays, static_cast<int>(ranks.size()), first, last, out + (first - begin) * element_bytes);
  });
}

// `count` elements of x, which fit into an area and all ranks have shown, become their sums.
void add_shown(Ranks& ranks, DType dtype, int64_t element_bytes, int64_t count, char* x) {
  const int64_t size = ranks.size();
  if (size == 2 || count * element_bytes < kShareBytes) {
    add_areas(ranks, dtype, element_bytes, x, 0, count, x);
    return;
  }
  const int64_t share = (count + size - 1) / size;
  const auto from = [&](int64_t rank) { return std::min(count, rank * share); };
  // Of this rank's own area others do not read its own share.
  const int64_t begin = from(ranks.rank()), end = from(ranks.rank() + 1);
  add_areas(ranks, dtype, element_bytes, x, begin, end,
            ranks.area(ranks.rank()) + begin * element_bytes);
  ranks.meet();
  for (int64_t rank = 0; rank < size; ++rank) {
    const int64_t first = from(rank) * element_bytes;
    copy(x + first, ranks.area(rank) + first, from(rank + 1) - from(rank), element_bytes);
  }
}

// The rows of `x`, which must have at least one dimension, for each rank of equally many.
int64_t rows_per_rank(const at::Tensor& x, const Ranks& ranks) {
  TORCH_CHECK(x.dim() >= 1 && x.size(0) % ranks.size() == 0, "x has ", x.dim() ? x.size(0) : 0,
              " rows, which ", ranks.size(), " ranks cannot share evenly");
  return x.size(0) / ranks.size();
}

int64_t row_bytes_of(const at::Tensor& x) {
  const auto sizes = x.sizes().slice(1);
  return std::accumulate(sizes.begin(), sizes.end(), x.element_size(), std::multiplies<int64_t>());
}

// Of any tensor: ranks must give the same.
uint64_t type_of(const at::Tensor& x) { return static_cast<uint64_t>(x.scalar_type()); }

std::vector<int64_t> offsets_of(at::IntArrayRef rows, int64_t row_bytes) {
  std::vector<int64_t> offsets{0};
  for (const int64_t count : rows) offsets.push_back(offsets.back() + count * row_bytes);
  return offsets;
}

}  // namespace

void sum_over_ranks(at::Tensor& x, int64_t handle) {
  VLLM_CHECK_CPU(x);
  VLLM_CHECK_CONTIGUOUS(x);
  const DType dtype = dtype_of(x, "x");
  Ranks& ranks = ranks_of(handle);
  const int64_t element_bytes = x.element_size(), count = x.numel();
  const int64_t most = kAreaBytes / element_bytes;
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t offset = begin * element_bytes, piece = std::min(most, count - begin);
    ranks.begin(Operation::kSum, dtype, count);
    copy(ranks.area(ranks.rank()), bytes(x) + offset, piece, element_bytes);
    ranks.meet();
    ranks.check_same("elements");
    add_shown(ranks, dtype, element_bytes, piece, mutable_bytes(x) + offset);
    ranks.turn();
  }
}

at::Tensor scatter_sum_over_ranks(const at::Tensor& x, int64_t handle) {
  VLLM_CHECK_CPU(x);
  const DType dtype = dtype_of(x, "x");
  Ranks& ranks = ranks_of(handle);
  const at::Tensor dense = x.contiguous();
  auto shape = dense.sizes().vec();
  const int64_t rows = rows_per_rank(dense, ranks), size = ranks.size();
  shape[0] = rows;
  at::Tensor out = at::empty(shape, dense.options());
  const int64_t element_bytes = dense.element_size(), count = out.numel();
  const int64_t most = kAreaBytes / element_bytes / size;  // of each rank's rows
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t piece = std::min(most, count - begin);
    ranks.begin(Operation::kScatterSum, dtype, dense.numel());
    for (int64_t rank = 0; rank < size; ++rank) {
      copy(ranks.area(ranks.rank()) + rank * piece * element_bytes,
           bytes(dense) + (rank * count + begin) * element_bytes, piece, element_bytes);
    }
    ranks.meet();
    ranks.check_same("elements");
    const int64_t own = ranks.rank() * piece;
    add_areas(ranks, dtype, element_bytes, ranks.area(ranks.rank()), own, own + piece,
              mutable_bytes(out) + begin * element_bytes);
    ranks.turn();
  }
  return out;
}

at::Tensor gather_over_ranks(const at::Tensor& x, int64_t handle) {
  VLLM_CHECK_CPU(x);
  TORCH_CHECK(x.dim() >= 1, "x must have at least one dimension");
  Ranks& ranks = ranks_of(handle);
  const at::Tensor dense = x.contiguous();
  auto shape = dense.sizes().vec();
  const int64_t row_bytes = shape.back() * dense.element_size();
  shape.back() *= ranks.size();
  at::Tensor out = at::empty(shape, dense.options());
  const int64_t total = dense.numel() * dense.element_size();
  const int64_t out_row = row_bytes * ranks.size();
  for (int64_t begin = 0; begin < total; begin += kAreaBytes) {
    const int64_t end = std::min(total, begin + kAreaBytes);
    ranks.begin(Operation::kGather, type_of(dense), total);
    copy(ranks.area(ranks.rank()), bytes(dense) + begin, end - begin, 1);
    ranks.meet();
    ranks.check_same("bytes");
    for (int64_t rank = 0; rank < ranks.size(); ++rank) {
      const bool is_own = rank == ranks.rank();
      const char* area = is_own ? bytes(dense) + begin : ranks.area(rank);
      for (int64_t at = begin; at < end;) {
        const int64_t row = at / row_bytes, column = at % row_bytes;
        const int64_t length = std::min(row_bytes - column, end - at);
        std::memcpy(mutable_bytes(out) + row * out_row + rank * row_bytes + column,
                    area + (at - begin), length);
        at += length;
      }
    }
    ranks.turn();
  }
  return out;
}

at::Tensor greatest_over_ranks(const at::Tensor& values, const at::Tensor& ids, int64_t handle) {
  VLLM_CHECK_CPU(values);
  VLLM_CHECK_CPU(ids);
  TORCH_CHECK(values.dtype() == at::kFloat && ids.dtype() == at::kInt && values.dim() == 1 &&
                  values.sizes() == ids.sizes(),
              "values must be [S] float32 and ids [S] int32");
  Ranks& ranks = ranks_of(handle);
  const at::Tensor dense_values = values.contiguous(), dense_ids = ids.contiguous();
  at::Tensor out = at::empty_like(dense_ids);
  int32_t* best = out.mutable_data_ptr<int32_t>();
  struct Found {
    float value;
    int32_t id;
  };
  constexpr int64_t kMost = kAreaBytes / sizeof(Found);
  const int64_t count = values.numel();
  for (int64_t begin = 0; begin < count; begin += kMost) {
    const int64_t end = std::min(count, begin + kMost);
    ranks.begin(Operation::kGreatest, 0, count);
    auto* own = reinterpret_cast<Found*>(ranks.area(ranks.rank()));
    for (int64_t row = begin; row < end; ++row) {
      own[row - begin] = {dense_values.const_data_ptr<float>()[row],
                          dense_ids.const_data_ptr<int32_t>()[row]};
    }
    ranks.meet();
    ranks.check_same("rows");
    for (int64_t row = begin; row < end; ++row) {
      Found most{-std::numeric_limits<float>::infinity(), -1};
      for (int64_t rank = 0; rank < ranks.size() && !std::isnan(most.value); ++rank) {
        const Found& other = reinterpret_cast<const Found*>(ranks.area(rank))[row - begin];
        if (other.value > most.value || std::isnan(other.value)) most = other;
      }
      best[row] = std::isnan(most.value) ? -1 : most.id;
    }
    ranks.turn();
  }
  return out;
}

at::Tensor exchange_over_ranks(const at::Tensor& x, at::IntArrayRef sent, at::IntArrayRef received,
                               int64_t handle) {
  VLLM_CHECK_CPU(x);
  Ranks& ranks = ranks_of(handle);
  const int64_t size = ranks.size();
  TORCH_CHECK(x.dim() >= 1 && static_cast<int64_t>(sent.size()) == size &&
                  static_cast<int64_t>(received.size()) == size,
              "x must have rows, and sent and received a number for each of ", size, " ranks");
  const at::Tensor dense = x.contiguous();
  const int64_t row_bytes = row_bytes_of(dense);
  const auto from = offsets_of(sent, row_bytes), to = offsets_of(received, row_bytes);
  TORCH_CHECK(from.back() == dense.numel() * dense.element_size(), "x has ", dense.size(0),
              " rows, and sent are ", from.back() / std::max<int64_t>(1, row_bytes));
  auto shape = dense.sizes().vec();
  shape[0] = std::accumulate(received.begin(), received.end(), int64_t{0});
  at::Tensor out = at::empty(shape, dense.options());
  // An area has a slot for each rank, which begins with how many bytes that rank gets in all. Who
  // sends most decides how often the slots are filled.
  const int64_t stride = kAreaBytes / size, slot = stride - sizeof(int64_t);
  int64_t longest = 0;
  for (const int64_t rows : sent) longest = std::max(longest, rows * row_bytes);
  const auto part = [&](const std::vector<int64_t>& offsets, int64_t rank, int64_t begin) {
    return std::min(slot, std::max<int64_t>(0, offsets[rank + 1] - offsets[rank] - begin));
  };
  for (int64_t begin = 0, end = slot; begin < end; begin += slot) {
    ranks.begin(Operation::kExchange, type_of(dense), longest);
    for (int64_t rank = 0; rank < size; ++rank) {
      char* place = ranks.area(ranks.rank()) + rank * stride;
      const int64_t all = from[rank + 1] - from[rank];
      std::memcpy(place, &all, sizeof(all));
      std::memcpy(place + sizeof(all), bytes(dense) + from[rank] + begin, part(from, rank, begin));
    }
    ranks.meet();
    ranks.check_operation();
    for (int64_t rank = 0; rank < size; ++rank) {
      end = std::max(end, static_cast<int64_t>(ranks.number(rank)));
      const char* place = ranks.area(rank) + ranks.rank() * stride;
      int64_t all;
      std::memcpy(&all, place, sizeof(all));
      TORCH_CHECK(all == to[rank + 1] - to[rank], "rank ", ranks.rank(), " expects ",
                  to[rank + 1] - to[rank], " bytes of rank ", rank, ", which sends ", all);
      std::memcpy(mutable_bytes(out) + to[rank] + begin, place + sizeof(all),
                  part(to, rank, begin));
    }
    ranks.turn();
  }
  return out;
}

at::Tensor broadcast_over_ranks(const at::Tensor& x, int64_t source, int64_t handle) {
  VLLM_CHECK_CPU(x);
  Ranks& ranks = ranks_of(handle);
  TORCH_CHECK(0 <= source && source < ranks.size(), "rank ", source, " of ", ranks.size(),
              " ranks cannot be the source");
  const at::Tensor dense = x.contiguous();
  at::Tensor out = at::empty_like(dense, at::MemoryFormat::Contiguous);
  const int64_t total = dense.numel() * dense.element_size();
  for (int64_t begin = 0; begin < total; begin += kAreaBytes) {
    const int64_t length = std::min(total - begin, kAreaBytes);
    ranks.begin(Operation::kBroadcast, source, total);
    if (ranks.rank() == source) copy(ranks.area(source), bytes(dense) + begin, length, 1);
    ranks.meet();
    ranks.check_same("bytes");
    copy(mutable_bytes(out) + begin, ranks.area(source), length, 1);
    ranks.turn();
  }
  return out;
}

}  // namespace vllm::cpu
