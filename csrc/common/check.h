// Argument checks of op entry points. Every message names the op's argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#define VLLM_CHECK_CPU(tensor) \
  TORCH_CHECK((tensor).device().is_cpu(), #tensor " must be on the CPU, is on ", (tensor).device())

#define VLLM_CHECK_RANK(tensor, rank)                                                       \
  TORCH_CHECK((tensor).dim() == (rank), #tensor " must have ", (rank), " dimensions, has ", \
              (tensor).sizes())

#define VLLM_CHECK_DTYPE(tensor, dtype)                                                 \
  TORCH_CHECK((tensor).scalar_type() == (dtype), #tensor " must be ", (dtype), ", is ", \
              (tensor).scalar_type())

#define VLLM_CHECK_SIZE(tensor, axis, expected)                                          \
  TORCH_CHECK((tensor).size(axis) == (expected), #tensor " must have size ", (expected), \
              " in dimension ", (axis), ", has shape ", (tensor).sizes())

// The innermost dimension is dense; outer strides are free.
#define VLLM_CHECK_DENSE_ROWS(tensor)                                                      \
  TORCH_CHECK((tensor).numel() == 0 || (tensor).size(-1) == 1 || (tensor).stride(-1) == 1, \
              #tensor " must be contiguous in its last dimension, has strides ",           \
              (tensor).strides())

#define VLLM_CHECK_CONTIGUOUS(tensor)                                              \
  TORCH_CHECK((tensor).is_contiguous(), #tensor " must be contiguous, has shape ", \
              (tensor).sizes(), " and strides ", (tensor).strides())
