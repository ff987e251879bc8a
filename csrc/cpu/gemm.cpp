// Linear layers over packed weights: panels of 64 outputs, divided over threads.

#include "cpu/gemm.h"

#include <ATen/ops/empty.h>

#include "common/check.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Multiplications below which waking a thread costs more than it saves.
constexpr int64_t kMinTaskWork = 64 * 1024;
// Bytes of x that should stay in a core's L2 cache beside a panel.
constexpr int64_t kBlockBytes = 256 * 1024;
constexpr int64_t kMinBlockRows = 48;

// Outputs that a panel makes.
int64_t panel_width(Gate gate) { return gate == Gate::kNone ? kPanelOutputs : kPanelOutputs / 2; }

// Groups cut so that the rows of each stay in the cache while the panels pass.
std::vector<WeightedRows> cut_to_blocks(const std::vector<WeightedRows>& groups,
                                        int64_t row_bytes) {
  const int64_t most =
      std::max<int64_t>(kMinBlockRows, kBlockBytes / std::max<int64_t>(1, row_bytes));
  std::vector<WeightedRows> blocks;
  for (const WeightedRows& group : groups) {
    for (int64_t done = 0; done < group.num_rows; done += most) {
      const int64_t rows = std::min(most, group.num_rows - done);
      blocks.push_back({group.first_row + done, rows, group.packed});
    }
  }
  return blocks;
}

}  // namespace

int64_t num_panels(int64_t outputs, Gate gate) {
  const int64_t width = panel_width(gate);
  return (outputs + width - 1) / width;
}

Gate gate_named(const std::string& act) {
  if (act == "silu") return Gate::kSilu;
  if (act == "gelu") return Gate::kGelu;
  if (act == "gelu_tanh") return Gate::kGeluTanh;
  TORCH_CHECK(false, "act must be silu, gelu or gelu_tanh, is ", act);
}

int64_t packed_depth(int64_t inputs, DType dtype) {
  return dtype == kBFloat16 ? (inputs + 1) / 2 * 2 : inputs;
}

at::Tensor rows_to_multiply(const at::Tensor& x) {
  const int64_t depth = packed_depth(x.size(1), dtype_of(x, "x"));
  if (x.size(1) == depth && (depth <= 1 || x.stride(1) == 1)) return x;
  at::Tensor wider = at::empty({x.size(0), depth}, x.options());
  wider.narrow(1, 0, x.size(1)).copy_(x);
  if (depth > x.size(1)) wider.narrow(1, x.size(1), depth - x.size(1)).zero_();
  return wider;
}

void multiply_groups(const at::Tensor& x, const std::vector<WeightedRows>& groups, const char* bias,
                     Gate gate, const at::Tensor& out) {
  const DType dtype = dtype_of(x, "x");
  const KernelTable& table = kernels();
  const bool in_pairs = dtype == kBFloat16 && table.has_dot_products;
  const at::Tensor wide_x = in_pairs ? at::Tensor() : x.to(at::kFloat).contiguous();
  const int64_t depth = x.size(1), element = x.element_size(), outputs = out.size(1);
  const int64_t width = panel_width(gate), panels = num_panels(outputs, gate);
  const int64_t panel_bytes = depth * kPanelOutputs * element;
  const std::vector<WeightedRows> blocks = cut_to_blocks(groups, depth * element);
  const auto multiply = table.multiply[dtype];
  const auto run = [&](int64_t task) {
    const WeightedRows& block = blocks[task / panels];
    const int64_t panel = task % panels, first = panel * width;
    PanelProduct product;
    product.x = bytes(x) + block.first_row * x.stride(0) * element;
    product.wide_x = in_pairs ? nullptr : wide_x.const_data_ptr<float>() + block.first_row * depth;
    product.x_stride = x.stride(0);
    product.num_rows = static_cast<int>(block.num_rows);
    product.depth = depth;
    product.panel = block.packed + panel * panel_bytes;
    product.bias = bias == nullptr ? nullptr : bias + panel * kPanelOutputs * element;
    product.out =
        mutable_bytes(out) + (block.first_row * out.stride(0) + first) * out.element_size();
    product.out_stride = out.stride(0);
    product.num_outputs = static_cast<int>(std::min(width, outputs - first));
    product.wide = gate == Gate::kNone && out.scalar_type() == at::kFloat;
    product.gate = gate;
    multiply(product);
  };
  int64_t rows = 1;
  for (const WeightedRows& block : blocks) rows = std::max(rows, block.num_rows);
  const int64_t work = std::max<int64_t>(1, rows * depth * kPanelOutputs);
  const int64_t grain = (kMinTaskWork + work - 1) / work;
  parallel_for(0, static_cast<int64_t>(blocks.size()) * panels, grain,
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) run(task);
               });
}

namespace {

void check_packed(const at::Tensor& x, const at::Tensor& packed,
                  const std::optional<at::Tensor>& bias, int64_t panels, int64_t bias_size) {
  VLLM_CHECK_RANK(x, 2);
  VLLM_CHECK_RANK(packed, 3);
  VLLM_CHECK_DTYPE(packed, x.scalar_type());
  VLLM_CHECK_CONTIGUOUS(packed);
  VLLM_CHECK_SIZE(packed, 0, panels);
  VLLM_CHECK_SIZE(packed, 1, packed_depth(x.size(1), dtype_of(x, "x")));
  VLLM_CHECK_SIZE(packed, 2, kPanelOutputs);
  if (!bias) return;
  VLLM_CHECK_RANK(*bias, 1);
  VLLM_CHECK_SIZE(*bias, 0, bias_size);
  VLLM_CHECK_DTYPE(*bias, x.scalar_type());
  VLLM_CHECK_CONTIGUOUS(*bias);
}

}  // namespace

at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed,
                         const std::optional<at::Tensor>& bias, int64_t outputs, bool wide) {
  check_packed(x, packed, bias, num_panels(outputs), outputs);
  const auto options = wide ? x.options().dtype(at::kFloat) : x.options();
  const at::Tensor out = at::empty({x.size(0), outputs}, options);
  multiply_groups(rows_to_multiply(x), {{0, x.size(0), bytes(packed)}},
                  bias ? bytes(*bias) : nullptr, Gate::kNone, out);
  return out;
}

at::Tensor packed_gated(const at::Tensor& x, const at::Tensor& packed,
                        const std::optional<at::Tensor>& bias, int64_t outputs,
                        const std::string& act) {
  const Gate gate = gate_named(act);
  const int64_t panels = num_panels(outputs, gate);
  check_packed(x, packed, bias, panels, panels * kPanelOutputs);
  const at::Tensor out = at::empty({x.size(0), outputs}, x.options());
  multiply_groups(rows_to_multiply(x), {{0, x.size(0), bytes(packed)}},
                  bias ? bytes(*bias) : nullptr, gate, out);
  return out;
}

}  // namespace vllm::cpu
