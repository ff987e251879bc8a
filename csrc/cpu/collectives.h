// What ranks of one machine compute together, through memory that all of them map.
//
// Every rank calls the same operations in the same order with tensors of the same shape. Sums are
// taken in rank order in float32 and rounded once, so that every rank has the same bits in every
// run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vllm::cpu {

// Joins `size` ranks as `rank`, through the memory behind the descriptor `fd`, which was empty
// before the first of them joined. Returns a handle. The descriptor may be closed afterwards.
int64_t join_ranks(int64_t fd, int64_t rank, int64_t size);

// The sum of all ranks' x.
at::Tensor sum_over_ranks(const at::Tensor& x, int64_t ranks);

// All ranks' x [*, W], in rank order along the last dimension: [*, size * W].
at::Tensor gather_over_ranks(const at::Tensor& x, int64_t ranks);

}  // namespace vllm::cpu
