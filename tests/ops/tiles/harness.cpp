// The products of csrc/cpu/isa/gemm_tiles.cpp on a model of the instructions, for ctypes.
#define VLLM_TILE_MODEL
#define VLLM_ISA tiles_of_test
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "cpu/isa/gemm_tiles.cpp"

using namespace vllm::cpu;

namespace {

// A copy that ends where reading on is a fault.
class Guarded {
 public:
  Guarded(const void* from, int64_t size) {
    const int64_t page = sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page;
    size_ = (pages + 1) * page;
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    memory_ = static_cast<char*>(memory);
    mprotect(memory_ + pages * page, page, PROT_NONE);
    data_ = memory_ + pages * page - size;
    std::memcpy(data_, from, size);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, size_); }

  const void* data() const { return data_; }

 private:
  int64_t size_;
  char* memory_;
  char* data_;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void multiply(const void* x, int64_t x_stride,
                                                                int num_rows, int64_t depth,
                                                                const void* panel, const void* bias,
                                                                void* out, int64_t out_stride,
                                                                int num_outputs, int wide,
                                                                int greatest, int gate) {
  KernelTable table{};
  tiles_of_test::add_tiles(table);
  const Guarded rows(x, ((num_rows - 1) * x_stride + depth) * 2);
  const Guarded weights(panel, depth * kPanelOutputs * 2);
  table.multiply[kBFloat16]({rows.data(), nullptr, x_stride, num_rows, depth, weights.data(), bias,
                             out, out_stride, num_outputs, wide != 0, greatest != 0,
                             static_cast<Gate>(gate)});
}
