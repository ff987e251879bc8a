#include "cpu/ranks.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <vector>

#include "common/check.h"
#include "cpu/collectives.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// How long a rank looks for another before it sleeps: more than two ranks are usually apart.
constexpr std::chrono::microseconds kPatience{100};
constexpr int kLooksPerClock = 64;
// By Operation.
constexpr const char* kNames[] = {"sum",      "scattered sum", "gather",
                                  "greatest", "exchange",      "broadcast"};

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value,
           const timespec* timeout = nullptr) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, timeout, nullptr,
                 0);
}

bool has_come(const Progress& other, uint32_t meeting) {
  return static_cast<int32_t>(other.arrived.load() - meeting) >= 0;  // numbers wrap around
}

std::mutex joining;
// Never destroyed: a rank's memory is its process's.
std::vector<Ranks*>& all_ranks() {
  static auto* all = new std::vector<Ranks*>();
  return *all;
}

}  // namespace

Ranks::Ranks(int fd, int64_t rank, int64_t size, bool spins)
    : rank_(rank), size_(size), spins_(spins) {
  const int64_t bytes = kMaxRanks * static_cast<int64_t>(sizeof(Progress)) + 2 * size * kAreaBytes;
  TORCH_CHECK(ftruncate(fd, bytes) == 0, "the memory that ranks share cannot have ", bytes,
              " bytes: ", std::strerror(errno));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  TORCH_CHECK(memory != MAP_FAILED, "the memory that ranks share (", bytes,
              " bytes) cannot be mapped: ", std::strerror(errno));
  progress_ = static_cast<Progress*>(memory);
  areas_ = static_cast<char*>(memory) + kMaxRanks * sizeof(Progress);
}

void Ranks::begin(Operation operation, uint64_t detail, uint64_t number) {
  TORCH_CHECK(broken_.empty(), broken_);
  name_.store(kNames[static_cast<int>(operation)], std::memory_order_relaxed);
  count_.store(count_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  const uint64_t kind = static_cast<uint64_t>(operation) << 16 | detail;
  progress_[rank_].figures[parity_].store(kind << kNumberBits | (number & kNumber),
                                          std::memory_order_relaxed);
}

void Ranks::meet() {
  const uint32_t meeting = ++meeting_;
  Progress& mine = progress_[rank_];
  mine.arrived.store(meeting);
  if (mine.sleepers.load() > 0) futex(&mine.arrived, FUTEX_WAKE, INT32_MAX);
  for (int64_t other = 0; other < size_; ++other) {
    if (other != rank_ && !has_come(progress_[other], meeting)) wait_for(other, meeting);
  }
}

void Ranks::check_same(const char* unit) {
  const uint64_t mine = figure(rank_);
  for (int64_t other = 0; other < size_; ++other) {
    const uint64_t theirs = figure(other);
    if (theirs == mine) continue;
    // Others may begin something else before they find out: no later figure means anything.
    broken_ = "operation " + std::to_string(count_.load()) + ": rank " + std::to_string(rank_) +
              " gives " + described(mine, unit) + ", rank " + std::to_string(other) + " gives " +
              described(theirs, unit) + ". Ranks must run the same launches.";
    TORCH_CHECK(false, broken_);
  }
}

void Ranks::check_operation() {
  for (int64_t other = 0; other < size_; ++other) {
    if (figure(other) >> kNumberBits != figure(rank_) >> kNumberBits) check_same("bytes");
  }
}

std::string Ranks::described(uint64_t figure, const char* unit) const {
  const uint64_t kind = figure >> kNumberBits;
  return std::string(kNames[kind >> 16]) + " (type or source " + std::to_string(kind & 0xffff) +
         ") of " + std::to_string(figure & kNumber) + " " + unit;
}

std::string Ranks::where() const {
  const int64_t awaited = awaited_.load(std::memory_order_relaxed);
  if (awaited < 0) return "";
  return std::string(name_.load(std::memory_order_relaxed)) + " " +
         std::to_string(count_.load(std::memory_order_relaxed)) + ": waits for rank " +
         std::to_string(awaited);
}

void Ranks::wait_for(int64_t other, uint32_t meeting) {
  awaited_.store(other, std::memory_order_relaxed);
  if (spins_) {
    const auto until = Clock::now() + kPatience;
    for (int looks = 1; !has_come(progress_[other], meeting); ++looks) {
      relax();
      if (looks % kLooksPerClock == 0 && Clock::now() > until) break;
    }
  }
  if (!has_come(progress_[other], meeting)) sleep_until(other, meeting);
  awaited_.store(-1, std::memory_order_relaxed);
}

void Ranks::sleep_until(int64_t other, uint32_t meeting) {
  Progress& progress = progress_[other];
  const auto until = Clock::now() + limit_;
  ++progress.sleepers;  // before the last look: either we see the rank, or it sees us
  while (true) {
    const uint32_t seen = progress.arrived.load();
    if (static_cast<int32_t>(seen - meeting) >= 0) break;
    if (limit_.count() == 0) {
      futex(&progress.arrived, FUTEX_WAIT, seen);
      continue;
    }
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(until - Clock::now());
    if (left.count() <= 0) {
      --progress.sleepers;
      TORCH_CHECK(false, where(), ", which did not come within the ", limit_.count(),
                  " s of --cpu-distributed-timeout-seconds or --distributed-timeout-seconds");
    }
    constexpr int64_t kSecond = 1'000'000'000;
    const timespec timeout{left.count() / kSecond, left.count() % kSecond};
    futex(&progress.arrived, FUTEX_WAIT, seen, &timeout);
  }
  --progress.sleepers;
}

Ranks& ranks_of(int64_t handle) {
  std::lock_guard<std::mutex> lock(joining);
  const auto& all = all_ranks();
  TORCH_CHECK(handle >= 0 && handle < static_cast<int64_t>(all.size()), "no ranks have handle ",
              handle);
  return *all[handle];
}

int64_t join_ranks(int64_t fd, int64_t rank, int64_t size, bool spins) {
  TORCH_CHECK(0 <= rank && rank < size && size <= kMaxRanks, "rank ", rank, " of ", size,
              " ranks: at most ", kMaxRanks, " can share memory");
  auto* ranks = new Ranks(static_cast<int>(fd), rank, size, spins);
  std::lock_guard<std::mutex> lock(joining);
  all_ranks().push_back(ranks);
  return static_cast<int64_t>(all_ranks().size()) - 1;
}

void limit_ranks(int64_t handle, int64_t seconds) { ranks_of(handle).limit(seconds); }

std::string where_ranks(int64_t handle) { return ranks_of(handle).where(); }

}  // namespace vllm::cpu
