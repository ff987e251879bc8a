// The threads that kernels share.
//
// OpenMP's threads either spin without end, which starves other processes, or sleep between two
// ops, which costs more than many an op takes. These spin for as long as the next op of a forward
// pass may take to come, then sleep; and nobody waits for one that the system is not running: what
// has not been claimed by others, the caller computes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace vllm::cpu {

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
// several.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  const int64_t most = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  // A few pieces per thread, so that one that starts late leaves its share to the others.
  const int64_t pieces = std::min<int64_t>(most, 4 * int64_t{num_threads()});
  if (pieces == 1 || num_threads() == 1) {
    body(begin, end);
    return;
  }
  for_each_task(pieces, [&](int64_t i) {
    body(begin + count * i / pieces, begin + count * (i + 1) / pieces);
  });
}

}  // namespace vllm::cpu
