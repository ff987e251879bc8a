// Choice of instruction set.
#pragma once

#include <string>
#include <vector>

namespace vllm::cpu {

// Names of the instruction sets built in that this machine runs, best last.
std::vector<std::string> available_isas();

// Use the named instruction set from now on; "auto" is the best available. Returns its name.
std::string select_isa(const std::string& name);

}  // namespace vllm::cpu
