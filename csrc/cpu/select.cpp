#include "cpu/select.h"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <atomic>

#include "cpu/kernels.h"

#if defined(VLLM_CPU_WITH_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

// VLLM_CPU_WITH_X86 is set where the AVX variants are part of the build, VLLM_CPU_WITH_ARM where
// that of Arm's bfloat16 instructions is.
#define VLLM_DECLARE_ISA(isa)               \
  namespace vllm::cpu::isa {                \
  void add_attention(KernelTable& table);   \
  void add_elementwise(KernelTable& table); \
  void add_gemm(KernelTable& table);        \
  void add_sampling(KernelTable& table);    \
  }

VLLM_DECLARE_ISA(baseline)
#ifdef VLLM_CPU_WITH_X86
VLLM_DECLARE_ISA(avx2)
VLLM_DECLARE_ISA(avx512)
VLLM_DECLARE_ISA(avx512bf16)
#endif
#ifdef VLLM_CPU_WITH_ARM
VLLM_DECLARE_ISA(bf16)
#endif

namespace vllm::cpu {
namespace {

struct Isa {
  const char* name;
  bool supported;
  KernelTable table;
};

// The table of an instruction set: what each of its object files contributes.
#define VLLM_MAKE_ISA(isa, is_supported) \
  [] {                                   \
    Isa made{#isa, is_supported, {}};    \
    isa::add_attention(made.table);      \
    isa::add_elementwise(made.table);    \
    isa::add_gemm(made.table);           \
    isa::add_sampling(made.table);       \
    return made;                         \
  }()

#ifdef VLLM_CPU_WITH_X86
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

#ifdef VLLM_CPU_WITH_ARM
bool has_arm_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBFloat16 = 1ul << 14;  // HWCAP2_BF16 of the kernel's interface
  return (getauxval(AT_HWCAP2) & kBFloat16) != 0;
#else
  return false;
#endif
}
#endif

// Portable first, best last.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
      VLLM_MAKE_ISA(baseline, true),
#ifdef VLLM_CPU_WITH_X86
      VLLM_MAKE_ISA(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
      VLLM_MAKE_ISA(avx512, has_avx512()),
      VLLM_MAKE_ISA(avx512bf16, has_avx512() && __builtin_cpu_supports("avx512bf16")),
#endif
#ifdef VLLM_CPU_WITH_ARM
      VLLM_MAKE_ISA(bf16, has_arm_bf16()),
#endif
  };
  return all;
}

const Isa& best() {
  const Isa* found = nullptr;
  for (const Isa& isa : isas()) {
    if (isa.supported) found = &isa;
  }
  return *found;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa{&best()};
  return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) {
    if (isa.supported) names.emplace_back(isa.name);
  }
  return names;
}

std::string select_isa(const std::string& name) {
  if (name == "auto") {
    chosen() = &best();
    return best().name;
  }
  for (const Isa& isa : isas()) {
    if (isa.supported && name == isa.name) {
      chosen() = &isa;
      return isa.name;
    }
  }
  TORCH_CHECK(false, "instruction set '", name, "' is not available; choose auto or one of ",
              c10::Join(", ", available_isas()));
}

const KernelTable& kernels() { return chosen().load(std::memory_order_relaxed)->table; }

}  // namespace vllm::cpu
