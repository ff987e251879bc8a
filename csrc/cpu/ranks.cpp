#include "cpu/ranks.h"

#include <linux/futex.h>
#include <sched.h>
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

long futex(std::atomic<uint32_t>* word, int operation, uint32_t value,
           const timespec* timeout = nullptr) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, timeout, nullptr,
                 0);
}

// Looking takes the processor from the rank that is looked for where there are too few.
std::chrono::microseconds patience(int64_t num_ranks) {
  return num_ranks <= sysconf(_SC_NPROCESSORS_ONLN) ? kPatience : std::chrono::microseconds(0);
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

Ranks::Ranks(int fd, int64_t rank, int64_t size, int64_t limit_s)
    : rank_(rank), size_(size), limit_(limit_s), patience_(patience(size)) {
  const int64_t bytes = kMaxRanks * static_cast<int64_t>(sizeof(Progress)) + 2 * size * kAreaBytes;
  TORCH_CHECK(ftruncate(fd, bytes) == 0, "the memory that ranks share cannot have ", bytes,
              " bytes: ", std::strerror(errno));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  TORCH_CHECK(memory != MAP_FAILED, "the memory that ranks share (", bytes,
              " bytes) cannot be mapped: ", std::strerror(errno));
  progress_ = static_cast<Progress*>(memory);
  areas_ = static_cast<char*>(memory) + kMaxRanks * sizeof(Progress);
}

void Ranks::begin(const char* name, uint64_t figure) {
  name_.store(name, std::memory_order_relaxed);
  number_.store(number_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  progress_[rank_].figures[parity_].store(figure, std::memory_order_relaxed);
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

void Ranks::check_same(const char* unit) const {
  for (int64_t other = 0; other < size_; ++other) {
    TORCH_CHECK(figure(other) == figure(rank_), name_.load(), " ", number_.load(), ": rank ", rank_,
                " gives ", figure(rank_), " ", unit, ", rank ", other, " gives ", figure(other),
                ". Ranks must run the same launches.");
  }
}

std::string Ranks::where() const {
  const int64_t awaited = awaited_.load(std::memory_order_relaxed);
  if (awaited < 0) return "";
  return std::string(name_.load(std::memory_order_relaxed)) + " " +
         std::to_string(number_.load(std::memory_order_relaxed)) + ": waits for rank " +
         std::to_string(awaited);
}

void Ranks::wait_for(int64_t other, uint32_t meeting) {
  awaited_.store(other, std::memory_order_relaxed);
  if (patience_.count() > 0) {
    const auto until = Clock::now() + patience_;
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
      TORCH_CHECK(false, where(), ", which did not come within ", limit_.count(),
                  " s (--distributed-timeout-seconds)");
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

int64_t join_ranks(int64_t fd, int64_t rank, int64_t size, int64_t limit_s) {
  TORCH_CHECK(0 <= rank && rank < size && size <= kMaxRanks, "rank ", rank, " of ", size,
              " ranks: at most ", kMaxRanks, " can share memory");
  auto* ranks = new Ranks(static_cast<int>(fd), rank, size, limit_s);
  std::lock_guard<std::mutex> lock(joining);
  all_ranks().push_back(ranks);
  return static_cast<int64_t>(all_ranks().size()) - 1;
}

std::string where_ranks(int64_t handle) { return ranks_of(handle).where(); }

}  // namespace vllm::cpu
