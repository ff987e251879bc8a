// Indices outside of their dimension: a Gaudi ignores such writes and reads zeros.
#pragma once

#include <ATen/core/stack.h>

#include "op_info.h"

namespace hpu_emulator {

// Where an index of the op on the stack (of host tensors) is out of range, runs it the way the
// device does, and returns true. Returns false, having done nothing, where all are in range.
bool run_tolerantly(const OpInfo& info, const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace hpu_emulator
