// Products with packed weights, shared by linear layers and experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/dtype.h"

namespace vllm::cpu {

// Rows [first_row, first_row + num_rows) of x meet the weight at `packed`.
struct WeightedRows {
  int64_t first_row;
  int64_t num_rows;
  const char* packed;
};

// Panels of a weight with `outputs` rows.
int64_t num_panels(int64_t outputs);

// Inputs as packed: bfloat16 has whole pairs.
int64_t packed_depth(int64_t inputs, DType dtype);

// out[r] = x[r] W^T + bias for the rows of each group. x [T, depth] of packed_depth inputs and
// dense in a row; out [T, outputs], of x's dtype or float32; bias is of x's dtype or null.
void multiply_groups(const at::Tensor& x, const std::vector<WeightedRows>& groups, const char* bias,
                     int64_t outputs, const at::Tensor& out);

// x with packed_depth inputs, dense in a row: itself where that is so already.
at::Tensor rows_to_multiply(const at::Tensor& x);

}  // namespace vllm::cpu
