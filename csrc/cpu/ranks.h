// Ranks of one machine: the memory that all of them map, and how they wait for each other.
//
// Every rank begins the same operations in the same order. In an operation a rank shows the others
// some bytes in its area, comes to a meeting, and reads theirs; large tensors take several
// meetings.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace vllm::cpu {

constexpr int64_t kMaxRanks = 64;
// Of an area, what a rank shows the others at a time. Two of its own and one of another rank stay
// in a core's L2 cache.
constexpr int64_t kAreaBytes = 256 << 10;

// One per rank, at the beginning of the shared memory, which is zero at first.
struct alignas(64) Progress {
  std::atomic<uint32_t> arrived;     // the number of the last meeting that the rank came to
  std::atomic<uint32_t> sleepers;    // ranks that sleep until it comes
  std::atomic<uint64_t> figures[2];  // what the rank gave its operation, by parity
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

enum class Operation : uint8_t { kSum, kScatterSum, kGather, kGreatest, kExchange, kBroadcast };

class Ranks {
 public:
  // Joins as `rank` through the memory behind `fd`, which was empty before the first rank joined.
  // `spins`: look for another rank for a while before sleeping. Where ranks share processors, that
  // takes them from the rank that is looked for.
  Ranks(int fd, int64_t rank, int64_t size, bool spins);

  // From now on a rank waits for another for `seconds` at most; 0: without a limit.
  void limit(int64_t seconds) { limit_ = std::chrono::seconds(seconds); }

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }

  // What `rank` shows. Meetings take turns with two areas: who writes to one again has met all
  // others since, and they had read it before they came.
  char* area(int64_t rank) const { return areas_ + (2 * rank + parity_) * kAreaBytes; }

  // Begins an operation, or the next piece of one. This rank gives it a number to show: what the
  // others must give as well. `detail`, below 2^16, is a part of the operation's kind.
  void begin(Operation operation, uint64_t detail, uint64_t number);

  // Returns when every rank has come to this meeting; what they wrote before can be read.
  // Throws if one has not within the limit.
  void meet();

  // The number that `rank` gave to the operation, once all have met.
  uint64_t number(int64_t rank) const { return figure(rank) & kNumber; }

  // After the first meeting of an operation: throws if a rank began another one, or gave another
  // number of `unit`. Nothing can be computed with these ranks any more.
  void check_same(const char* unit);

  // The same of the operation alone.
  void check_operation();

  // Ends what was shown at this meeting.
  void turn() { parity_ = 1 - parity_; }

  // "sum 12: waits for rank 1" of a rank that waits, "" otherwise. Any thread may ask.
  std::string where() const;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kNumberBits = 40;
  static constexpr uint64_t kNumber = (uint64_t{1} << kNumberBits) - 1;

  uint64_t figure(int64_t rank) const { return progress_[rank].figures[parity_].load(); }
  std::string described(uint64_t figure, const char* unit) const;
  void wait_for(int64_t other, uint32_t meeting);
  void sleep_until(int64_t other, uint32_t meeting);

  const int64_t rank_;
  const int64_t size_;
  const bool spins_;
  std::chrono::seconds limit_{0};
  Progress* progress_;
  char* areas_;
  uint32_t meeting_ = 0;
  int parity_ = 0;
  std::string broken_;  // why nothing can be computed any more
  // For `where`.
  std::atomic<const char*> name_{""};
  std::atomic<uint64_t> count_{0};  // of operations
  std::atomic<int64_t> awaited_{-1};
};

// The ranks of a handle that join_ranks (collectives.h) has given. Throws if there are none.
Ranks& ranks_of(int64_t handle);

}  // namespace vllm::cpu
