#include "cpu/collectives.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <vector>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxRanks = 64;
// Of an area, what a rank shows the others at a time; larger tensors go in pieces. It stays in a
// cache that cores share.
constexpr int64_t kAreaBytes = 1 << 20;
// From here on each rank adds up its share, and all take the sums from each other, rather than
// adding up everything themselves.
constexpr int64_t kShareBytes = 64 << 10;
constexpr int64_t kGrain = 16 * 1024;  // elements a thread should at least have
// How long a rank looks for another before it sleeps: more than two ranks are usually apart.
constexpr auto kPatience = std::chrono::microseconds(100);
constexpr int kLooksPerClock = 64;

// One per rank, at the beginning of the shared memory, which is zero at first.
struct alignas(64) Progress {
  std::atomic<uint32_t> arrived;   // the number of the last meeting that the rank came to
  std::atomic<uint32_t> sleepers;  // ranks that sleep until it comes
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, nullptr, nullptr,
                 0);
}

class Ranks {
 public:
  Ranks(int fd, int64_t rank, int64_t size) : rank_(rank), size_(size) {
    const int64_t bytes =
        kMaxRanks * static_cast<int64_t>(sizeof(Progress)) + 2 * size * kAreaBytes;
    TORCH_CHECK(ftruncate(fd, bytes) == 0, "the memory that ranks share cannot have ", bytes,
                " bytes: ", std::strerror(errno));
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    TORCH_CHECK(memory != MAP_FAILED, "the memory that ranks share (", bytes,
                " bytes) cannot be mapped: ", std::strerror(errno));
    progress_ = static_cast<Progress*>(memory);
    areas_ = static_cast<char*>(memory) + kMaxRanks * sizeof(Progress);
  }

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }

  // What `rank` shows in the operation under way. Operations take turns with two areas: who writes
  // to one again has met all others since, and they had read it before they came.
  char* area(int64_t rank) const { return areas_ + (2 * rank + parity_) * kAreaBytes; }

  // Returns when every rank has come to this meeting; what they wrote before can be read.
  void meet() {
    const uint32_t meeting = ++meeting_;
    Progress& mine = progress_[rank_];
    mine.arrived.store(meeting);
    if (mine.sleepers.load() > 0) futex(&mine.arrived, FUTEX_WAKE, INT32_MAX);
    for (int64_t other = 0; other < size_; ++other) {
      if (other != rank_) wait_for(progress_[other], meeting);
    }
  }

  // Ends an operation.
  void turn() { parity_ = 1 - parity_; }

 private:
  static bool has_come(const Progress& other, uint32_t meeting) {
    return static_cast<int32_t>(other.arrived.load() - meeting) >= 0;  // numbers wrap around
  }

  static void wait_for(Progress& other, uint32_t meeting) {
    if (has_come(other, meeting)) return;
    const auto until = Clock::now() + kPatience;
    for (int looks = 1;; ++looks) {
      if (has_come(other, meeting)) return;
      relax();
      if (looks % kLooksPerClock == 0 && Clock::now() > until) break;
    }
    ++other.sleepers;  // before the last look: either we see the rank, or it sees us
    for (;;) {
      const uint32_t seen = other.arrived.load();
      if (static_cast<int32_t>(seen - meeting) >= 0) break;
      futex(&other.arrived, FUTEX_WAIT, seen);
    }
    --other.sleepers;
  }

  const int64_t rank_;
  const int64_t size_;
  Progress* progress_;
  char* areas_;
  uint32_t meeting_ = 0;
  int parity_ = 0;
};

std::mutex joining;
// Never destroyed: a rank's memory is its process's.
std::vector<Ranks*>& all_ranks() {
  static auto* all = new std::vector<Ranks*>();
  return *all;
}

Ranks& ranks_of(int64_t handle) {
  std::lock_guard<std::mutex> lock(joining);
  const auto& all = all_ranks();
  TORCH_CHECK(handle >= 0 && handle < static_cast<int64_t>(all.size()), "no ranks have handle ",
              handle);
  return *all[handle];
}

void copy(char* to, const char* from, int64_t count, int64_t element_bytes) {
  parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * element_bytes, from + begin * element_bytes,
                (end - begin) * element_bytes);
  });
}

// Elements [begin, end) of all areas, added up, to `out`, where the first of them goes.
void add_areas(const Ranks& ranks, DType dtype, int64_t element_bytes, int64_t begin, int64_t end,
               char* out) {
  const char* arrays[kMaxRanks];
  for (int64_t rank = 0; rank < ranks.size(); ++rank) arrays[rank] = ranks.area(rank);
  const auto add = kernels().add_arrays[dtype];
  parallel_for(begin, end, kGrain, [&](int64_t first, int64_t last) {
    add(arrays, static_cast<int>(ranks.size()), first, last, out + (first - begin) * element_bytes);
  });
}

// `count` elements, which fit into an area.
void sum_piece(Ranks& ranks, DType dtype, int64_t element_bytes, const char* x, int64_t count,
               char* out) {
  copy(ranks.area(ranks.rank()), x, count, element_bytes);
  ranks.meet();
  const int64_t size = ranks.size();
  if (size == 2 || count * element_bytes < kShareBytes) {
    add_areas(ranks, dtype, element_bytes, 0, count, out);
  } else {
    const int64_t share = (count + size - 1) / size;
    const auto from = [&](int64_t rank) { return std::min(count, rank * share); };
    // Of this rank's own area others do not read its own share.
    const int64_t begin = from(ranks.rank()), end = from(ranks.rank() + 1);
    add_areas(ranks, dtype, element_bytes, begin, end,
              ranks.area(ranks.rank()) + begin * element_bytes);
    ranks.meet();
    for (int64_t rank = 0; rank < size; ++rank) {
      const int64_t first = from(rank) * element_bytes;
      copy(out + first, ranks.area(rank) + first, from(rank + 1) - from(rank), element_bytes);
    }
  }
  ranks.turn();
}

}  // namespace

int64_t join_ranks(int64_t fd, int64_t rank, int64_t size) {
  TORCH_CHECK(0 <= rank && rank < size && size <= kMaxRanks, "rank ", rank, " of ", size,
              " ranks: at most ", kMaxRanks, " can share memory");
  auto* ranks = new Ranks(static_cast<int>(fd), rank, size);
  std::lock_guard<std::mutex> lock(joining);
  all_ranks().push_back(ranks);
  return static_cast<int64_t>(all_ranks().size()) - 1;
}

at::Tensor sum_over_ranks(const at::Tensor& x, int64_t handle) {
  VLLM_CHECK_CPU(x);
  const DType dtype = dtype_of(x, "x");
  Ranks& ranks = ranks_of(handle);
  const at::Tensor dense = x.contiguous();
  at::Tensor out = at::empty_like(dense, at::MemoryFormat::Contiguous);
  const int64_t element_bytes = dense.element_size(), count = dense.numel();
  const int64_t most = kAreaBytes / element_bytes;
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t offset = begin * element_bytes;
    sum_piece(ranks, dtype, element_bytes, bytes(dense) + offset, std::min(most, count - begin),
              mutable_bytes(out) + offset);
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
    copy(ranks.area(ranks.rank()), bytes(dense) + begin, end - begin, 1);
    ranks.meet();
    for (int64_t rank = 0; rank < ranks.size(); ++rank) {
      const char* area = ranks.area(rank);
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

}  // namespace vllm::cpu
