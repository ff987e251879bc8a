// Products with packed weights, shared by linear layers and experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "cpu/dtype.h"

namespace vllm::cpu {

// Rows [first_row, first_row + num_rows) of x meet the weight at `packed`.
struct WeightedRows {
  int64_t first_row;
  int64_t num_rows;
  const char* packed;
};

// Panels of a weight with `outputs` rows; of a gated one, `outputs` gates and as many others.
int64_t num_panels(int64_t outputs, Gate gate = Gate::kNone);

// Inputs as packed: bfloat16 has whole pairs.
int64_t packed_depth(int64_t inputs, DType dtype);

// out[r] = x[r] W^T + bias for the rows of each group, or with a gate what that makes of it.
// x [T, depth] of packed_depth inputs and dense in a row; out [T, outputs], of x's dtype or,
// without a gate, float32; bias is of x's dtype and in order of panels, or null.
void multiply_groups(const at::Tensor& x, const std::vector<WeightedRows>& groups, const char* bias,
                     Gate gate, const at::Tensor& out);

// The gate named silu, gelu or gelu_tanh.
Gate gate_named(const std::string& act);

// x with packed_depth inputs, dense in a row: itself where that is so already.
at::Tensor rows_to_multiply(const at::Tensor& x);

}  // namespace vllm::cpu
