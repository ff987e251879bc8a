// What the emulator knows about an operator, worked out once from its schema and name.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <string>
#include <vector>

namespace hpu_emulator {

enum class Argument : uint8_t { kValue, kNumber, kIgnored };
// Ops whose indices the device tolerates where the CPU raises.
enum class Indexing : uint8_t { kNone, kSelect, kGather, kIndex, kIndexPut, kWriteRows, kScatter };

struct OpInfo {
  uint64_t id = 0;  // hash of the name, the same in every process
  std::string name;
  std::vector<Argument> arguments;
  std::vector<bool> written;  // arguments that the op writes to
  bool is_view = false;       // computes nothing
  bool is_allocation = false;
  bool waits = false;  // its result, or the shape of it, is needed by the host
  bool reads_host = false;
  bool is_linear_algebra = false;
  bool accepts_host_indices = false;
  bool is_gelu = false;
  int generator = -1;  // index of the argument
  Indexing indexing = Indexing::kNone;
};

const OpInfo& info_of(const c10::OperatorHandle& op);

// A hash that is the same in every process; its text can be asked for with text_of().
uint64_t intern(const std::string& text);
std::string text_of(uint64_t hash);

// PT_HPU_PLACE_ON_CPU: "" lets unsupported ops run on the host, "none" forbids it, and a list of
// names, separated by commas, sends these ops to the host.
void set_place_on_cpu(const std::string& value);
bool is_placed_on_cpu(const OpInfo& info);
bool is_fallback_allowed();

}  // namespace hpu_emulator
