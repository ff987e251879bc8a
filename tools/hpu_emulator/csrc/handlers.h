// Callbacks into Python for what is rare: everything frequent is counted in C++.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hpu_emulator {

struct Compilation {
  int64_t recipe = 0;
  std::string mode;  // lazy, eager, compile
  uint64_t key_high = 0;
  uint64_t key_low = 0;
  std::vector<int64_t> words;  // see recipes.h
  int64_t num_ops = 0;
  int64_t workspace_bytes = 0;
};

// A device is used for the first time. May raise: the device is busy.
void notify_acquire(int index);
// The host waits for the device, or reads from it. May raise under a strict switch.
void notify_sync(const char* kind, const std::string& op, int64_t bytes);
// An op that the device cannot run is run by the host. May raise.
void notify_fallback(const std::string& op);
// A recipe is asked for that was not known. May raise under a strict switch.
void notify_compilation(const Compilation& compilation);
// An index outside of its dimension. May raise under a strict switch.
void notify_bad_index(const std::string& op, int64_t index, int64_t size);

}  // namespace hpu_emulator
