// Weights into panels of 64 outputs, and rows back out of them.

#include <ATen/ops/empty.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "common/check.h"
#include "cpu/gemm.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Takes the whole pages of [begin, begin + size) from the system in one call. A fault per page,
// while it is written, takes longer than the writing. Systems that know no such call fault.
void populate(char* begin, int64_t size) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, of Linux 5.14
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  static std::atomic<bool> is_known{true};
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + size) / page * page;
  if (first >= last || !is_known) return;
  if (madvise(reinterpret_cast<void*>(first), last - first, kPopulateWrite) != 0) is_known = false;
#else
  (void)begin, (void)size;
#endif
}

// What of a panel belongs to a half of a gated weight, or to a weight that has none.
struct Share {
  int64_t width;  // outputs per panel
  int64_t line;   // of the first of them
};

Share share_of(int64_t half) {
  TORCH_CHECK(-1 <= half && half <= 1, "half must be 0, 1 or, of a weight that is whole, -1, is ",
              half);
  if (half < 0) return {kPanelOutputs, 0};
  return {kPanelOutputs / 2, half * kPanelOutputs / 2};
}

}  // namespace

at::Tensor empty_packed(int64_t outputs, int64_t inputs, bool gated, at::ScalarType dtype) {
  const int64_t parts = gated ? 2 : 1;
  TORCH_CHECK(outputs % parts == 0, "a gated weight must have a gate for every output, has ",
              outputs, " outputs");
  const int64_t each = outputs / parts, width = kPanelOutputs / parts;
  const int64_t panels = (each + width - 1) / width;
  const at::TensorOptions options = at::TensorOptions().dtype(dtype);
  const DType packed_dtype = dtype_of(at::empty({0}, options), "dtype");
  at::Tensor packed =
      at::empty({panels, packed_depth(inputs, packed_dtype), kPanelOutputs}, options);
  if (each % width != 0) packed.select(0, panels - 1).zero_();
  return packed;
}

void pack_rows(const at::Tensor& rows, at::Tensor packed, int64_t first, int64_t half) {
  VLLM_CHECK_RANK(rows, 2);
  VLLM_CHECK_DENSE_ROWS(rows);
  VLLM_CHECK_RANK(packed, 3);
  VLLM_CHECK_CONTIGUOUS(packed);
  VLLM_CHECK_DTYPE(packed, rows.scalar_type());
  const DType dtype = dtype_of(rows, "rows");
  VLLM_CHECK_SIZE(packed, 1, packed_depth(rows.size(1), dtype));
  VLLM_CHECK_SIZE(packed, 2, kPanelOutputs);
  const Share share = share_of(half);
  const int64_t end = first + rows.size(0), panels = packed.size(0);
  TORCH_CHECK(0 <= first && end <= panels * share.width, "rows ", first, " to ", end,
              " are outside of packed, which has shape ", packed.sizes());
  if (rows.numel() == 0) return;
  const int64_t element = rows.element_size(), row_bytes = rows.stride(0) * element;
  const int64_t panel_bytes = packed.stride(0) * element, first_panel = first / share.width;
  const auto pack_panel = kernels().pack_panel[dtype];
  const int64_t last_panel = (end + share.width - 1) / share.width;
  for_each_task(last_panel - first_panel, [&](int64_t task) {
    const int64_t begin = (first_panel + task) * share.width;
    const int64_t from = std::max(first, begin), to = std::min(end, begin + share.width);
    char* panel = mutable_bytes(packed) + (first_panel + task) * panel_bytes;
    populate(panel, panel_bytes);
    pack_panel({bytes(rows) + (from - first) * row_bytes, rows.stride(0), to - from, rows.size(1)},
               static_cast<int>(share.line + from - begin), static_cast<int>(to - from), panel);
  });
}

at::Tensor pack_weight(const at::Tensor& weight, bool gated) {
  VLLM_CHECK_RANK(weight, 2);
  at::Tensor packed = empty_packed(weight.size(0), weight.size(1), gated, weight.scalar_type());
  if (!gated) {
    pack_rows(weight, packed, 0, -1);
    return packed;
  }
  const int64_t outputs = weight.size(0) / 2;
  for (int64_t half = 0; half < 2; ++half) {
    pack_rows(weight.narrow(0, half * outputs, outputs), packed, 0, half);
  }
  return packed;
}

at::Tensor packed_rows(const at::Tensor& packed, const at::Tensor& ids, int64_t outputs,
                       int64_t inputs) {
  VLLM_CHECK_RANK(packed, 3);
  VLLM_CHECK_CONTIGUOUS(packed);
  const DType dtype = dtype_of(packed, "packed");
  VLLM_CHECK_SIZE(packed, 0, num_panels(outputs));
  VLLM_CHECK_SIZE(packed, 1, packed_depth(inputs, dtype));
  VLLM_CHECK_SIZE(packed, 2, kPanelOutputs);
  VLLM_CHECK_RANK(ids, 1);
  const at::Tensor wanted = ids.to(at::kLong).contiguous();
  const int64_t* id = wanted.const_data_ptr<int64_t>();
  const int64_t count = wanted.size(0), element = packed.element_size();
  const int64_t panel_bytes = packed.stride(0) * element;
  at::Tensor out = at::empty({count, inputs}, packed.options());
  const auto unpack = kernels().unpack_row[dtype];
  parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      TORCH_CHECK(0 <= id[i] && id[i] < outputs, "ids[", i, "] = ", id[i],
                  " is outside of the table's ", outputs, " rows");
      unpack(bytes(packed) + id[i] / kPanelOutputs * panel_bytes,
             static_cast<int>(id[i] % kPanelOutputs), inputs,
             mutable_bytes(out) + i * inputs * element);
    }
  });
  return out;
}

}  // namespace vllm::cpu
