// The products of csrc/cpu/isa/gemm_tiles.cpp on a model of the instructions, for ctypes.
#define VLLM_TILE_MODEL
#define VLLM_ISA tiles_of_test
#include "cpu/isa/gemm_tiles.cpp"

using namespace vllm::cpu;

extern "C" __attribute__((visibility("default"))) void multiply(const void* x, int64_t x_stride,
                                                                int num_rows, int64_t depth,
                                                                const void* panel, const void* bias,
                                                                void* out, int64_t out_stride,
                                                                int num_outputs, int wide,
                                                                int greatest, int gate) {
  KernelTable table{};
  tiles_of_test::add_tiles(table);
  table.multiply[kBFloat16]({x, nullptr, x_stride, num_rows, depth, panel, bias, out, out_stride,
                             num_outputs, wide != 0, greatest != 0, static_cast<Gate>(gate)});
}
