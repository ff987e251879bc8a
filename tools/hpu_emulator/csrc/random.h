// The random numbers of the devices.
#pragma once

#include <ATen/core/Generator.h>

namespace hpu_emulator {

const at::Generator& generator_of(c10::DeviceIndex index);

}  // namespace hpu_emulator
