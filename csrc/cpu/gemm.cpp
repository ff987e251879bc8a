// Linear layers over packed weights: panels of 64 outputs, divided over threads.

#include "cpu/gemm.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <numeric>

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
constexpr int32_t kNoOutput = -1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Outputs that a panel makes.
int64_t panel_width(Gate gate) { return gate == Gate::kNone ? kPanelOutputs : kPanelOutputs / 2; }

// Index of the greatest of some floats, the first of equals; -1 if there is NaN, or only -inf.
int64_t first_greatest(const float* values, int64_t count) {
  int64_t best = -1;
  float most = -kInfinity;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(values[i])) return -1;
    if (values[i] > most) {
      most = values[i];
      best = i;
    }
  }
  return best;
}

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

namespace {

// Products of rows of x with single panels, as kernels take them, but for where results go.
class Products {
 public:
  Products(const at::Tensor& x, const char* bias, Gate gate, int64_t outputs)
      : x_(x), bias_(bias), gate_(gate), outputs_(outputs) {
    const DType dtype = dtype_of(x, "x");
    multiply_ = kernels().multiply[dtype];
    const bool in_pairs = dtype == kBFloat16 && kernels().has_dot_products;
    if (!in_pairs) wide_x_ = x.to(at::kFloat).contiguous();
  }

  int64_t panels() const { return num_panels(outputs_, gate_); }

  PanelProduct of(const WeightedRows& rows, int64_t panel) const {
    const int64_t element = x_.element_size(), depth = x_.size(1), width = panel_width(gate_);
    PanelProduct product{};
    product.x = bytes(x_) + rows.first_row * x_.stride(0) * element;
    if (wide_x_.defined()) {
      product.wide_x = wide_x_.const_data_ptr<float>() + rows.first_row * depth;
    }
    product.x_stride = x_.stride(0);
    product.num_rows = static_cast<int>(rows.num_rows);
    product.depth = depth;
    product.panel = rows.packed + panel * depth * kPanelOutputs * element;
    product.bias = bias_ == nullptr ? nullptr : bias_ + panel * kPanelOutputs * element;
    product.num_outputs = static_cast<int>(std::min(width, outputs_ - panel * width));
    product.gate = gate_;
    return product;
  }

  void multiply(const PanelProduct& product) const { multiply_(product); }

  // Calls body(rows, panel) for all panels of blocks of all groups, divided over the threads.
  template <typename Body>
  void for_each(const std::vector<WeightedRows>& groups, const Body& body) const {
    const int64_t depth = x_.size(1), count = panels();
    const std::vector<WeightedRows> blocks = cut_to_blocks(groups, depth * x_.element_size());
    int64_t rows = 1;
    for (const WeightedRows& block : blocks) rows = std::max(rows, block.num_rows);
    const int64_t work = std::max<int64_t>(1, rows * depth * kPanelOutputs);
    const int64_t grain = (kMinTaskWork + work - 1) / work;
    parallel_for(0, static_cast<int64_t>(blocks.size()) * count, grain,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t task = begin; task < end; ++task) {
                     body(blocks[task / count], task % count);
                   }
                 });
  }

 private:
  const at::Tensor& x_;
  at::Tensor wide_x_;
  const char* bias_;
  Gate gate_;
  int64_t outputs_;
  void (*multiply_)(const PanelProduct&);
};

}  // namespace

void multiply_groups(const at::Tensor& x, const std::vector<WeightedRows>& groups, const char* bias,
                     Gate gate, const at::Tensor& out) {
  const Products products(x, bias, gate, out.size(1));
  const bool wide = gate == Gate::kNone && out.scalar_type() == at::kFloat;
  const int64_t width = panel_width(gate);
  products.for_each(groups, [&](const WeightedRows& rows, int64_t panel) {
    PanelProduct product = products.of(rows, panel);
    const int64_t place = rows.first_row * out.stride(0) + panel * width;
    product.out = mutable_bytes(out) + place * out.element_size();
    product.out_stride = out.stride(0);
    product.wide = wide;
    products.multiply(product);
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

std::tuple<at::Tensor, at::Tensor> packed_greatest(const at::Tensor& x, const at::Tensor& packed,
                                                   const std::optional<at::Tensor>& bias,
                                                   int64_t outputs) {
  check_packed(x, packed, bias, packed.size(0), outputs);
  TORCH_CHECK(num_panels(outputs) <= packed.size(0), "packed has ", packed.size(0),
              " panels, fewer than ", outputs, " outputs take");
  const at::Tensor dense = rows_to_multiply(x);
  const Products products(dense, bias ? bytes(*bias) : nullptr, Gate::kNone, outputs);
  const int64_t num_rows = x.size(0), panels = products.panels();
  const char* weight = bytes(packed);
  const at::Tensor maxima = at::empty({num_rows, panels}, x.options().dtype(at::kFloat));
  float* of_panels = maxima.mutable_data_ptr<float>();
  products.for_each({{0, num_rows, weight}}, [&](const WeightedRows& rows, int64_t panel) {
    PanelProduct product = products.of(rows, panel);
    product.out = of_panels + rows.first_row * panels + panel;
    product.out_stride = panels;
    product.greatest = true;
    products.multiply(product);
  });
  const at::Tensor most = at::empty({num_rows}, maxima.options());
  const at::Tensor ids = at::empty({num_rows}, x.options().dtype(at::kInt));
  float* value = most.mutable_data_ptr<float>();
  int32_t* id = ids.mutable_data_ptr<int32_t>();
  // Which output of its panel it was is found by multiplying that panel again: the same sums.
  parallel_for(0, num_rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* values_of_panels = of_panels + row * panels;
      const int64_t panel = first_greatest(values_of_panels, panels);
      if (panel < 0) {
        value[row] = std::accumulate(values_of_panels, values_of_panels + panels, -kInfinity);
        id[row] = kNoOutput;
        continue;
      }
      value[row] = values_of_panels[panel];
      PanelProduct product = products.of({row, 1, weight}, panel);
      float values[kPanelOutputs];
      product.out = values;
      product.wide = true;
      products.multiply(product);
      id[row] =
          static_cast<int32_t>(panel * kPanelOutputs + first_greatest(values, product.num_outputs));
    }
  });
  return {most, ids};
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
