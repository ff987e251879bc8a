#include "indexing.h"

namespace hpu_emulator {

bool run_tolerantly(
    const OpInfo& info, const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  return false;
}

}  // namespace hpu_emulator
