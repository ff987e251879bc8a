#include "random.h"

#include <ATen/CPUGeneratorImpl.h>

#include <map>
#include <mutex>

namespace hpu_emulator {

// Philox on a Gaudi, the CPU's generator here: as reproducible, other numbers.
const at::Generator& generator_of(c10::DeviceIndex index) {
  static std::mutex mutex;
  static auto& generators = *new std::map<c10::DeviceIndex, at::Generator>();
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = generators.find(index);
  if (found == generators.end()) {
    found = generators.emplace(index, at::detail::createCPUGenerator(/*seed_val=*/0)).first;
  }
  return found->second;
}

}  // namespace hpu_emulator
