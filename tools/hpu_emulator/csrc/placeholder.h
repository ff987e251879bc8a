// PT_COMPILE_ONLY_MODE: recipes are compiled, nothing is launched, results are garbage.
#pragma once

#include <ATen/core/stack.h>

#include "op_info.h"

namespace hpu_emulator {

// Replaces the op's arguments on the stack by results of the right shapes, filled with NaN or
// large integers; what it would have written in place stays as it is. Returns false, having done
// nothing, for an op whose result shapes are not known without running it.
bool make_placeholders(const c10::OperatorHandle& op, const OpInfo& info, torch::jit::Stack* stack);

}  // namespace hpu_emulator
