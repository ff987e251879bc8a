// Products with a packed weight: some rows of x against one panel of 64 outputs.
//
// Every output is one running sum over the inputs in order, so a row's result depends on nothing
// but the row: not on how many rows there are, nor on who computes them.

#include <type_traits>

#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/panel.h"
#include "cpu/isa/vec.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#endif

namespace vllm::cpu::VLLM_ISA {
namespace {

// Rows computed together: their sums and one input's weights must fit the registers, of which there
// are 32 with AVX-512 and on Arm, else 16.
#if defined(__AVX512F__)
constexpr int kMaxRows = 6;
constexpr int kStripVecs = 4;
#elif defined(__aarch64__)
constexpr int kMaxRows = 6;
constexpr int kStripVecs = 4;
#else
constexpr int kMaxRows = 4;
constexpr int kStripVecs = 2;
#endif
constexpr int kStrip = kStripVecs * kWidth;
static_assert(kPanelOutputs % kStrip == 0);

// bfloat16 is packed in pairs of inputs, which is what dot-product instructions take.
template <typename T>
constexpr int kPair = 1;
template <>
constexpr int kPair<BFloat16> = 2;

// Two bfloat16 of neighbouring inputs, as float32 each.
inline Vec low_half(UintVec pair) { return bit_cast<Vec>(pair << 16); }
inline Vec high_half(UintVec pair) { return bit_cast<Vec>(pair & 0xffff0000u); }

inline UintVec load_pairs(const BFloat16* p) {
  UintVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// sums[m][i] += x[m][k] * weight[k][i] for one strip of outputs; x is float32 here.
template <typename T, int kRows>
inline void add_products(const float* x, int64_t x_stride, const T* weights, int64_t depth,
                         Vec (&sums)[kRows][kStripVecs]) {
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = weights + k * kPanelOutputs;
    for (int i = 0; i < kStripVecs; ++i) {
      const Vec weight = load(row + i * kWidth);
      for (int m = 0; m < kRows; ++m) sums[m][i] += x[m * x_stride + k] * weight;
    }
  }
}

template <int kRows>
inline void add_products(const float* x, int64_t x_stride, const BFloat16* weights, int64_t depth,
                         Vec (&sums)[kRows][kStripVecs]) {
  for (int64_t k = 0; k < depth; k += 2) {
    const BFloat16* row = weights + k * kPanelOutputs;
    for (int i = 0; i < kStripVecs; ++i) {
      const UintVec pairs = load_pairs(row + 2 * i * kWidth);
      const Vec low = low_half(pairs), high = high_half(pairs);
      for (int m = 0; m < kRows; ++m) {
        sums[m][i] += x[m * x_stride + k] * low;
        sums[m][i] += x[m * x_stride + k + 1] * high;
      }
    }
  }
}

// The same by dot products of pairs.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kHasDotProducts = true;

#if defined(__AVX512BF16__)
using Pairs = __m512bh;  // two bfloat16 for each float32 of a vector

inline Pairs pairs_at(const BFloat16* p) { return (Pairs)_mm512_loadu_si512(p); }
inline Pairs everywhere(int32_t pair) { return (Pairs)_mm512_set1_epi32(pair); }
inline Vec add_dots(Vec sums, Pairs a, Pairs b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sums, a, b);
}
#else
using Pairs = bfloat16x8_t;

inline Pairs pairs_at(const BFloat16* p) {
  return vreinterpretq_bf16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
}
inline Pairs everywhere(int32_t pair) { return vreinterpretq_bf16_s32(vdupq_n_s32(pair)); }
inline Vec add_dots(Vec sums, Pairs a, Pairs b) {
  return (Vec)vbfdotq_f32((float32x4_t)sums, a, b);
}
#endif

template <int kRows, int kLines>
inline void add_dot_products(const BFloat16* x, int64_t x_stride, const BFloat16* weights,
                             int64_t depth, Ahead ahead, Vec (&sums)[kRows][kStripVecs]) {
  for (int64_t k = 0; k < depth; k += 2) {
    const BFloat16* row = weights + k * kPanelOutputs;
    Pairs weight[kStripVecs];
    for (int i = 0; i < kStripVecs; ++i) weight[i] = pairs_at(row + 2 * i * kWidth);
    ahead.step<kLines>();
    for (int m = 0; m < kRows; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, x + m * x_stride + k, sizeof(pair));
      const Pairs both = everywhere(pair);
      for (int i = 0; i < kStripVecs; ++i) sums[m][i] = add_dots(sums[m][i], weight[i], both);
    }
  }
}
#else
constexpr bool kHasDotProducts = false;

template <int kRows, int kLines>
void add_dot_products(const BFloat16*, int64_t, const BFloat16*, int64_t, Ahead,
                      Vec (&)[kRows][kStripVecs]);
#endif

// Sums [kRows, 64] of a panel, on their way to the output.
template <int kRows>
struct Tile {
  float sums[kRows][kPanelOutputs];

  void take(int column, const Vec (&strip)[kRows][kStripVecs]) {
    for (int m = 0; m < kRows; ++m) {
      for (int i = 0; i < kStripVecs; ++i) store(&sums[m][column + i * kWidth], strip[m][i]);
    }
  }
};

// What group `index` of `count` groups of rows reads ahead: the first few share the next panel, a
// single one its own stream.
template <typename T>
inline Ahead ahead_of(const PanelProduct& product, int index, int lines) {
  const int64_t panel_bytes = product.depth * kPanelOutputs * int64_t{sizeof(T)};
  const char* panel = static_cast<const char*>(product.panel);
  if (lines == kLinesPerPair) return {panel + kStreamAhead};
  return {panel + panel_bytes + index * (panel_bytes * lines / kLinesPerPair)};
}

template <typename T, int kRows, int kLines>
void multiply_rows(const PanelProduct& product, int row, Ahead ahead) {
  const T* panel = static_cast<const T*>(product.panel);
  Tile<kRows> tile;
  const int columns = product.gate == Gate::kNone ? product.num_outputs : kPanelOutputs;
  for (int column = 0; column < columns; column += kStrip) {
    Vec sums[kRows][kStripVecs] = {};
    const T* weights = panel + kPair<T> * column;
    if constexpr (kHasDotProducts && kPair<T> == 2) {
      const T* x = static_cast<const T*>(product.x) + row * product.x_stride;
      add_dot_products<kRows, kLines>(x, product.x_stride, weights, product.depth, ahead, sums);
    } else {
      const float* x = product.wide_x + row * product.depth;
      add_products(x, product.depth, weights, product.depth, sums);
    }
    tile.take(column, sums);
  }
  for (int m = 0; m < kRows; ++m) finish<T>(product, row + m, tile.sums[m]);
}

template <typename T, int kRows>
void multiply_group(const PanelProduct& product, int row, int index, int count) {
  // Of the lines of a panel a pair of inputs takes four.
  if (count == 1) {
    multiply_rows<T, kRows, 4>(product, row, ahead_of<T>(product, 0, 4));
  } else if (count < 4 && index < 2) {
    multiply_rows<T, kRows, 2>(product, row, ahead_of<T>(product, index, 2));
  } else if (count >= 4 && index < 4) {
    multiply_rows<T, kRows, 1>(product, row, ahead_of<T>(product, index, 1));
  } else {
    multiply_rows<T, kRows, 0>(product, row, {nullptr});
  }
}

template <typename T, int kRows>
void choose_group(const PanelProduct& product, int row, int rows, int index, int count) {
  if (rows == kRows) return multiply_group<T, kRows>(product, row, index, count);
  if constexpr (kRows > 1) choose_group<T, kRows - 1>(product, row, rows, index, count);
}

template <typename T>
void multiply(const PanelProduct& product) {
  // Groups of nearly equal size: 7 rows are 4 + 3, not 6 + 1.
  const int count = (product.num_rows + kMaxRows - 1) / kMaxRows;
  for (int index = 0, row = 0; index < count; ++index) {
    const int rows = product.num_rows / count + (index < product.num_rows % count);
    choose_group<T, kMaxRows>(product, row, rows, index, count);
    row += rows;
  }
}

// Index of input k and output n in a panel.
template <typename T>
inline int64_t place(int64_t k, int n) {
  return k / kPair<T> * kPair<T> * kPanelOutputs + n * kPair<T> + k % kPair<T>;
}

// What of a row stays together. Moving it without a look at its values is what makes packing a
// copy.
template <typename T>
using Unit = std::conditional_t<kPair<T> * sizeof(T) == sizeof(uint32_t), uint32_t, uint16_t>;

// Rows and units that are moved at once: a cache line of each row becomes lines of the panel.
constexpr int kTile = 16;
// Bytes of a row that are fetched ahead. Into L2: rows often lie where L1 holds only few of them.
constexpr int64_t kFetchAhead = 512;

// out[u * 64 + n] = unit u of row n.
inline void transpose_tile(const char* rows, int64_t row_bytes, uint32_t* out) {
#if defined(__AVX512F__)
  __m512i a[kTile], b[kTile];
  for (int n = 0; n < kTile; ++n) {
    a[n] = _mm512_loadu_si512(rows + n * row_bytes);
    _mm_prefetch(rows + n * row_bytes + kFetchAhead, _MM_HINT_T1);
  }
  for (int n = 0; n < kTile; n += 2) {
    b[n] = _mm512_unpacklo_epi32(a[n], a[n + 1]);
    b[n + 1] = _mm512_unpackhi_epi32(a[n], a[n + 1]);
  }
  for (int n = 0; n < kTile; n += 4) {  // a[n + i]: unit i of each quarter of rows n to n + 3
    a[n] = _mm512_unpacklo_epi64(b[n], b[n + 2]);
    a[n + 1] = _mm512_unpackhi_epi64(b[n], b[n + 2]);
    a[n + 2] = _mm512_unpacklo_epi64(b[n + 1], b[n + 3]);
    a[n + 3] = _mm512_unpackhi_epi64(b[n + 1], b[n + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i upper = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    const __m512i upper_odd = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    const __m512i lower = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    const __m512i lower_odd = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    const auto store = [&](int u, __m512i line) {
      _mm512_storeu_si512(out + u * kPanelOutputs, line);
    };
    store(i, _mm512_shuffle_i32x4(upper, lower, 0x88));
    store(i + 4, _mm512_shuffle_i32x4(upper_odd, lower_odd, 0x88));
    store(i + 8, _mm512_shuffle_i32x4(upper, lower, 0xdd));
    store(i + 12, _mm512_shuffle_i32x4(upper_odd, lower_odd, 0xdd));
  }
#else
  uint32_t tile[kTile][kTile];
  for (int n = 0; n < kTile; ++n) {
    __builtin_memcpy(tile[n], rows + n * row_bytes, sizeof tile[n]);
    __builtin_prefetch(rows + n * row_bytes + kFetchAhead, 0, 2);
  }
  for (int u = 0; u < kTile; ++u) {
    for (int n = 0; n < kTile; ++n) out[u * kPanelOutputs + n] = tile[n][u];
  }
#endif
}

// The same of any number of rows, and of units [begin, end).
template <typename T>
void transpose(const char* rows, int64_t row_bytes, int num_rows, int64_t inputs, int64_t begin,
               Unit<T>* out) {
  const int64_t whole = inputs / kPair<T>, units = (inputs + kPair<T> - 1) / kPair<T>;
  for (int n = 0; n < num_rows; ++n) {
    const char* row = rows + n * row_bytes;
    for (int64_t u = begin; u < whole; ++u) {
      __builtin_memcpy(out + u * kPanelOutputs + n, row + u * sizeof(Unit<T>), sizeof(Unit<T>));
    }
    if (whole < units) {  // an input without another to make a pair
      Unit<T> half = 0;
      __builtin_memcpy(&half, row + whole * sizeof(Unit<T>), sizeof(T));
      out[whole * kPanelOutputs + n] = half;
    }
  }
}

// Rows of a weight become outputs [first, first + count) of a panel: input by input, all outputs;
// bfloat16 in pairs of inputs. Missing rows and inputs are zero.
template <typename T>
void pack_panel(const PanelRows& source, int first, int count, void* panel) {
  static_assert(sizeof(Unit<T>) == kPair<T> * sizeof(T));
  const int64_t row_bytes = source.row_stride * int64_t{sizeof(T)};
  const int rows = source.num_rows < count ? static_cast<int>(source.num_rows) : count;
  const char* from = static_cast<const char*>(source.rows);
  Unit<T>* out = static_cast<Unit<T>*>(panel) + first;
  int n = 0;
  if constexpr (sizeof(Unit<T>) == sizeof(uint32_t)) {
    const int64_t tiled = source.inputs / kPair<T> / kTile * kTile;
    for (; n + kTile <= rows; n += kTile) {
      const char* some = from + n * row_bytes;
      for (int64_t u = 0; u < tiled; u += kTile) {
        transpose_tile(some + u * sizeof(Unit<T>), row_bytes, out + u * kPanelOutputs + n);
      }
      transpose<T>(some, row_bytes, kTile, source.inputs, tiled, out + n);
    }
  }
  transpose<T>(from + n * row_bytes, row_bytes, rows - n, source.inputs, 0, out + n);
  const int64_t units = (source.inputs + kPair<T> - 1) / kPair<T>;
  for (int64_t u = 0; u < units && rows < count; ++u) {
    for (int missing = rows; missing < count; ++missing) out[u * kPanelOutputs + missing] = 0;
  }
}

// One row of a weight back out of its panel.
template <typename T>
void unpack_row(const void* panel, int row, int64_t inputs, void* out) {
  const T* in = static_cast<const T*>(panel);
  T* to = static_cast<T*>(out);
  for (int64_t k = 0; k < inputs; ++k) {
    to[k] = in[place<T>(k, row)];
  }
}

template <typename T>
void add(KernelTable& table, DType dtype) {
  table.multiply[dtype] = multiply<T>;
  table.pack_panel[dtype] = pack_panel<T>;
  table.unpack_row[dtype] = unpack_row<T>;
}

}  // namespace

void add_gemm(KernelTable& table) {
  add<float>(table, kFloat32);
  add<BFloat16>(table, kBFloat16);
  add<Float16>(table, kFloat16);
  table.has_dot_products = kHasDotProducts;
}

}  // namespace vllm::cpu::VLLM_ISA
