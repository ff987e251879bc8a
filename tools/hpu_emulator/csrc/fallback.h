// Runs the ops of the HPU on the host, on the same memory.
#pragma once

#include <ATen/core/stack.h>

#include "op_info.h"

namespace hpu_emulator {

// What every op does on its way, for kernels that are not the fallback: checks its devices.
c10::DeviceIndex check_devices(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments);

// Runs `op` on the arguments on the stack, which its results replace. Nobody is told.
void execute(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// The kernel of every op that has no other: checks, runs and reports.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// Takes from values what the device does not store (see FallbackSettings).
void narrow(const OpInfo& info, const at::Tensor& host);

struct FallbackSettings {
  bool narrow_int64 = false;      // stored as int32 (PT_ENABLE_INT64_SUPPORT=false)
  bool narrow_float64 = true;     // stored as float32
  bool tanh_gelu = true;          // PT_HPU_FORCE_TANH_FOR_GELU
  bool negative_indices = false;  // PT_HPU_ENABLE_NEGATIVE_INDEXING
};

FallbackSettings& fallback_settings();
int64_t num_fallbacks();

}  // namespace hpu_emulator
