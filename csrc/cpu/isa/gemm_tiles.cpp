// bfloat16 products with a packed weight by AMX: tiles of 16 rows, 16 outputs and 32 inputs.
//
// A panel lies as the instructions want it: pairs of inputs, outputs side by side. Any number of
// rows takes this way, so a row's result depends on nothing but the row here as well.

#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/panel.h"

#if defined(VLLM_TILE_MODEL)
#include "tile_model.h"  // the same instructions in plain C++
#else
#include <immintrin.h>
#endif

namespace vllm::cpu::VLLM_ISA {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileOutputs = 16;
constexpr int kTileInputs = 32;
constexpr int kMostRows = 2 * kTileRows;  // that share what is loaded of the weight
constexpr int64_t kPairBytes = kPanelOutputs * 2 * sizeof(BFloat16);
constexpr int64_t kInputsBytes = kTileInputs / 2 * kPairBytes;  // of a panel
constexpr int kLinesPerTile = kTileInputs / 2 * kLinesPerPair;

// The operand of ldtilecfg.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};

  void set(int tile, int rows) {
    num_rows[tile] = static_cast<uint8_t>(rows);
    row_bytes[tile] = 64;
  }
};

// Compilers do not see what memory tile instructions read and write.
inline void settle_memory() { asm volatile("" ::: "memory"); }

constexpr int kSumTiles = 4;
constexpr int kWeightTiles[] = {5, 7};

// Tiles 0 to 3 hold sums, 4 and 6 rows of x. With `second_rows` the second half of either serves
// these, else all serve the first rows.
inline void shape_tiles(int first_rows, int second_rows) {
  TileShapes shapes;
  const int others = second_rows > 0 ? second_rows : first_rows;
  for (int tile = 0; tile < kSumTiles; ++tile) shapes.set(tile, tile < 2 ? first_rows : others);
  shapes.set(4, first_rows);
  shapes.set(6, others);
  for (const int tile : kWeightTiles) shapes.set(tile, kTileInputs / 2);
  settle_memory();
  _tile_loadconfig(&shapes);
}

// 32 inputs of some rows and of the panel.
struct Operands {
  const char* x;
  int64_t x_stride;  // bytes
  const char* panel;
};

// 32 outputs of the first 16 rows, whose operands stay where they are.
inline void add_first(const Operands& from) {
  _tile_loadd(4, from.x, from.x_stride);
  _tile_loadd(5, from.panel, kPairBytes);
  _tile_dpbf16ps(0, 4, 5);
  _tile_loadd(7, from.panel + 64, kPairBytes);
  _tile_dpbf16ps(1, 4, 7);
}

// All outputs of up to 16 rows.
inline void add_wide(const Operands& from) {
  add_first(from);
  _tile_loadd(5, from.panel + 128, kPairBytes);
  _tile_dpbf16ps(2, 4, 5);
  _tile_loadd(7, from.panel + 192, kPairBytes);
  _tile_dpbf16ps(3, 4, 7);
}

// 32 outputs of up to 32 rows.
inline void add_tall(const Operands& from) {
  add_first(from);
  _tile_loadd(6, from.x + kTileRows * from.x_stride, from.x_stride);
  _tile_dpbf16ps(2, 6, 5);
  _tile_dpbf16ps(3, 6, 7);
}

// The last inputs, fewer than 32, with zeros to make them 32.
class Rest {
 public:
  Rest(const PanelProduct& product, int row, int rows, int64_t inputs) {
    const int64_t done = product.depth - inputs;
    const BFloat16* x = static_cast<const BFloat16*>(product.x);
    for (int m = 0; m < rows; ++m) {
      __builtin_memcpy(x_[m], x + (row + m) * product.x_stride + done, inputs * sizeof(BFloat16));
    }
    __builtin_memcpy(panel_, static_cast<const char*>(product.panel) + done / 2 * kPairBytes,
                     inputs / 2 * kPairBytes);
    settle_memory();
  }

  Operands at(int64_t column) const {
    return {reinterpret_cast<const char*>(x_), sizeof(x_[0]), panel_ + column};
  }

 private:
  alignas(64) BFloat16 x_[kMostRows][kTileInputs] = {};
  alignas(64) char panel_[kInputsBytes] = {};
};

// Adds up all inputs of rows from `row` on; `column` of the panel is in bytes of a pair.
template <int kLines, typename Add>
inline void add_inputs(const PanelProduct& product, int row, int rows, int64_t column, Ahead ahead,
                       Add add) {
  const int64_t row_bytes = product.x_stride * int64_t{sizeof(BFloat16)};
  const int64_t rest = product.depth % kTileInputs;
  const char* x = static_cast<const char*>(product.x) + row * row_bytes;
  const char* panel = static_cast<const char*>(product.panel) + column;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k + kTileInputs <= product.depth; k += kTileInputs) {
    ahead.step<kLines>();
    add(Operands{x + k * int64_t{sizeof(BFloat16)}, row_bytes, panel + k / 2 * kPairBytes});
  }
  if (rest > 0) {
    const Rest last(product, row, rows, rest);
    add(last.at(column));
    settle_memory();
  }
}

using Sums = float[kMostRows][kPanelOutputs];

void multiply_wide(const PanelProduct& product, int row, int rows, Sums& sums) {
  constexpr int64_t kStride = sizeof(sums[0]);
  shape_tiles(rows, 0);
  // A few rows are done before memory has delivered more: they stream the panel itself.
  const Ahead ahead{static_cast<const char*>(product.panel) + kStreamAhead};
  add_inputs<kLinesPerTile>(product, row, rows, 0, ahead, add_wide);
  _tile_stored(0, &sums[0][0], kStride);
  _tile_stored(1, &sums[0][kTileOutputs], kStride);
  _tile_stored(2, &sums[0][2 * kTileOutputs], kStride);
  _tile_stored(3, &sums[0][3 * kTileOutputs], kStride);
}

void multiply_tall(const PanelProduct& product, int row, int rows, Sums& sums) {
  constexpr int64_t kStride = sizeof(sums[0]);
  shape_tiles(kTileRows, rows - kTileRows);
  const int64_t panel_bytes = product.depth / 2 * kPairBytes;
  for (int column = 0; column < kPanelOutputs; column += 2 * kTileOutputs) {
    const int64_t offset = column * int64_t{2 * sizeof(BFloat16)};
    const char* half =
        static_cast<const char*>(product.panel) + panel_bytes + (column > 0 ? panel_bytes / 2 : 0);
    if (row == 0) {  // the first rows fetch the next panel, of each half of the outputs a half
      add_inputs<kLinesPerTile / 2>(product, row, rows, offset, {half}, add_tall);
    } else {
      add_inputs<0>(product, row, rows, offset, {nullptr}, add_tall);
    }
    _tile_stored(0, &sums[0][column], kStride);
    _tile_stored(1, &sums[0][column + kTileOutputs], kStride);
    _tile_stored(2, &sums[kTileRows][column], kStride);
    _tile_stored(3, &sums[kTileRows][column + kTileOutputs], kStride);
  }
}

void multiply(const PanelProduct& product) {
  alignas(64) Sums sums;
  for (int row = 0; row < product.num_rows; row += kMostRows) {
    const int rows = product.num_rows - row < kMostRows ? product.num_rows - row : kMostRows;
    if (rows > kTileRows) {
      multiply_tall(product, row, rows, sums);
    } else {
      multiply_wide(product, row, rows, sums);
    }
    settle_memory();
    for (int m = 0; m < rows; ++m) finish<BFloat16>(product, row + m, sums[m]);
  }
  _tile_release();  // what is in tiles, the system saves whenever it switches threads
}

}  // namespace

void add_tiles(KernelTable& table) { table.multiply[kBFloat16] = multiply; }

}  // namespace vllm::cpu::VLLM_ISA
