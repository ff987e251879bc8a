#include "cpu/select.h"

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <atomic>

#include "cpu/kernels.h"

#if defined(VLLM_CPU_WITH_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(VLLM_CPU_WITH_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
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
namespace vllm::cpu::amx {
void add_tiles(KernelTable& table);
}
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

// The table of an instruction set: what each of its object files contributes. Their functions are
// compiled for that set, so that on a machine without it even filling a table may not be done.
#define VLLM_MAKE_ISA(isa, is_supported) \
  [] {                                   \
    Isa made{#isa, is_supported, {}};    \
    if (!made.supported) return made;    \
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

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Linux lets a process use AMX's tiles once it has asked; its threads need not.
bool has_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;   // of EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of the kernel's interface
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kBFloat16) != 0 && (d & kTile) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
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

#ifdef VLLM_CPU_WITH_X86
Isa make_amx() {
  Isa made = VLLM_MAKE_ISA(avx512bf16, has_amx());
  made.name = "amx";
  if (made.supported) amx::add_tiles(made.table);
  return made;
}
#endif

// Portable first, best last.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
      VLLM_MAKE_ISA(baseline, true),
#ifdef VLLM_CPU_WITH_X86
      VLLM_MAKE_ISA(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
      VLLM_MAKE_ISA(avx512, has_avx512()),
      VLLM_MAKE_ISA(avx512bf16, has_avx512_bf16()),
      make_amx(),
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
