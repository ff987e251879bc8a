// Collectives of the backend "hccl": those of gloo, on the memory of the device.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace hpu_emulator {

bool is_collective(const c10::OperatorHandle& op);
// Runs a collective whose process group is the host's, as kernels report it.
void execute_collective(const c10::OperatorHandle& op, torch::jit::Stack* stack);
// PT_HPU_ENABLE_LAZY_COLLECTIVES: collectives are ops of lazy graphs, and may be captured.
void set_lazy_collectives(bool enabled);

}  // namespace hpu_emulator
