// What each instruction set's object files contribute to its kernel table.
#pragma once

#include "cpu/kernels.h"

namespace vllm::cpu {
namespace VLLM_ISA {

void add_attention(KernelTable& table);
void add_dot_attention(KernelTable& table);  // replaces what dot products do better
void add_elementwise(KernelTable& table);
void add_gemm(KernelTable& table);
void add_sampling(KernelTable& table);
void add_tiles(KernelTable& table);  // replaces the products that AMX does better

}  // namespace VLLM_ISA
}  // namespace vllm::cpu
