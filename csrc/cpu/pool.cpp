#include "cpu/pool.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

namespace vllm::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How long a thread without work looks for some before it sleeps: more than the host takes between
// two ops of a forward pass.
constexpr auto kPatience = std::chrono::microseconds(100);
constexpr int kLooksPerClock = 64;

struct Job {
  void (*body)(void*, int64_t);
  void* context;
  int64_t count;
};

class Pool {
 public:
  void run(const Job& job) {
    std::unique_lock<std::mutex> mine(caller_, std::try_to_lock);
    if (!mine.owns_lock()) {  // another thread is computing: the cores are busy anyway
      for (int64_t i = 0; i < job.count; ++i) job.body(job.context, i);
      return;
    }
    const int helpers = static_cast<int>(std::min<int64_t>(num_threads(), job.count)) - 1;
    while (started_ < helpers) std::thread(&Pool::work, this, started_++).detach();
    job_ = job;
    helpers_ = helpers;
    next_ = 0;
    failed_ = nullptr;
    open_ = true;
    ++round_;
    if (sleeping_ > 0) round_.notify_all();
    take_part();
    // Who came late finds the job closed; who is in it is waited for.
    open_ = false;
    for (int looks = 1; inside_ > 0; ++looks) {
      relax();
      if (looks % 4096 == 0) std::this_thread::yield();
    }
    if (failed_) std::rethrow_exception(failed_);
  }

  // The threads of a parent process do not exist in its child.
  void forget_threads() {
    started_ = 0;
    inside_ = 0;
    sleeping_ = 0;
    open_ = false;
  }

 private:
  void take_part() {
    try {
      for (int64_t i = next_++; i < job_.count; i = next_++) job_.body(job_.context, i);
    } catch (...) {
      next_ = job_.count;  // nobody starts another
      std::lock_guard<std::mutex> lock(failure_);
      if (!failed_) failed_ = std::current_exception();
    }
  }

  void work(int index) {
    for (int seen = 0;;) {
      seen = wait_for_round_after(seen);
      ++inside_;
      // Read after `inside_` was raised: either the caller sees us, or we see that it is over.
      if (open_ && index < helpers_) take_part();
      --inside_;
    }
  }

  int wait_for_round_after(int seen) {
    const auto until = Clock::now() + kPatience;
    for (int looks = 1;; ++looks) {
      const int now = round_;
      if (now != seen) return now;
      relax();
      if (looks % kLooksPerClock == 0 && Clock::now() > until) break;
    }
    ++sleeping_;
    round_.wait(seen);
    --sleeping_;
    return round_;
  }

  std::mutex caller_;
  std::mutex failure_;
  int started_ = 0;
  Job job_{};
  std::exception_ptr failed_;
  alignas(64) std::atomic<int> round_{0};
  std::atomic<int> helpers_{0};
  std::atomic<bool> open_{false};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> inside_{0};
  std::atomic<int> sleeping_{0};
};

Pool& pool() {
  // Never destroyed: its threads may look at it until the process ends.
  static Pool* one = [] {
    static Pool* made = new Pool;
    pthread_atfork(nullptr, nullptr, [] { made->forget_threads(); });
    return made;
  }();
  return *one;
}

}  // namespace

int num_threads() { return at::get_num_threads(); }

void detail::run_tasks(int64_t count, void (*body)(void*, int64_t), void* context) {
  pool().run({body, context, count});
}

}  // namespace vllm::cpu
