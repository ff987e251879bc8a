// What ranks of one machine compute together, through memory that all of them map.
//
// Every rank calls the same operations in the same order with tensors of the same shape. Sums are
// taken in rank order in float32 and rounded once, so that every rank has the same bits in every
// run.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <string>

namespace vllm::cpu {

// Joins `size` ranks as `rank`, through the memory behind the descriptor `fd`, which was empty
// before the first of them joined. Returns a handle. The descriptor may be closed afterwards.
// `spins`: every rank has a processor of its own.
int64_t join_ranks(int64_t fd, int64_t rank, int64_t size, bool spins);

// From now on a rank waits for another for `seconds` at most; 0, as at first: without a limit.
void limit_ranks(int64_t ranks, int64_t seconds);

// "sum 12: waits for rank 1" of a rank that waits, "" otherwise. Any thread may ask.
std::string where_ranks(int64_t ranks);

// x becomes the sum of all ranks' x.
void sum_over_ranks(at::Tensor& x, int64_t ranks);

// This rank's rows of the sum of all ranks' x [size * R, *]: [R, *].
at::Tensor scatter_sum_over_ranks(const at::Tensor& x, int64_t ranks);

// All ranks' x [*, W], in rank order along the last dimension: [*, size * W].
at::Tensor gather_over_ranks(const at::Tensor& x, int64_t ranks);

// Of each row the id [S] int32 beside the greatest of all ranks' values [S] float32, of equals that
// of the first rank. -1 where there is NaN, or nothing but -inf.
at::Tensor greatest_over_ranks(const at::Tensor& values, const at::Tensor& ids, int64_t ranks);

// Rows of every rank, in rank order: [sum(sent), *] -> [sum(received), *]. Of x [sum(sent), *]
// rank r gets sent[r] rows, in order; `received` are those that each rank has for this one.
at::Tensor exchange_over_ranks(const at::Tensor& x, at::IntArrayRef sent, at::IntArrayRef received,
                               int64_t ranks);

// The x of rank `source`; the others' x have its shape and dtype.
at::Tensor broadcast_over_ranks(const at::Tensor& x, int64_t source, int64_t ranks);

}  // namespace vllm::cpu
