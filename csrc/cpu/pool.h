// The threads that kernels share.
//
// OpenMP's threads either spin without end, which starves other processes, or sleep between two
// ops, which costs more than many an op takes. These spin for as long as the next op of a forward
// pass may take to come, then sleep; and nobody waits for one that the system is not running: what
// has not been claimed by others, the caller computes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace vllm::cpu {

// Between two looks at what another thread or process writes.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Threads that may take part, the caller included: torch's number of threads.
int num_threads();

namespace detail {
// Calls body(context, i) for all i < count; i are claimed one by one, in order.
void run_tasks(int64_t count, void (*body)(void* context, int64_t i), void* context);
}  // namespace detail

// Calls body(i) for all i < count, divided over the threads. Rethrows the first exception.
template <typename Body>
void for_each_task(int64_t count, const Body& body) {
  if (count <= 1 || num_threads() == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const auto call = [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); };
  detail::run_tasks(count, call, const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

// Calls body(first, last) for pieces of [begin, end), each of at least `grain` if there are
// several. Pieces are neighbours where they can be, and get smaller towards the end, so that
// threads of different speed finish together.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t threads = std::min<int64_t>(num_threads(), count / grain);
  if (threads <= 1) {
    body(begin, end);
    return;
  }
  std::atomic<int64_t> next{begin};
  for_each_task(threads, [&](int64_t) {
    int64_t first = next;
    while (first < end) {
      const int64_t last = std::min(end, first + std::max(grain, (end - first) / (2 * threads)));
      if (!next.compare_exchange_weak(first, last)) continue;
      body(first, last);
      first = next;
    }
  });
}

}  // namespace vllm::cpu
