// Norms, gated activations and rotary embedding: rows divided over threads.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Elements a thread should at least have: below, waking it costs more than the work.
constexpr int64_t kGrain = 16 * 1024;

int64_t rows_per_thread(int64_t width) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
}

// Rows [*, width] of a tensor of two or three dimensions with free outer strides.
struct Rows {
  explicit Rows(const at::Tensor& tensor) {
    const int64_t rank = tensor.dim();
    width = tensor.size(rank - 1);
    inner = rank >= 3 ? tensor.size(rank - 2) : 1;
    count = width == 0 ? 0 : tensor.numel() / width;
    inner_bytes = rank >= 3 ? tensor.stride(rank - 2) * tensor.element_size() : 0;
    outer_bytes = rank >= 2 ? tensor.stride(0) * tensor.element_size() : 0;
    base = bytes(tensor);
  }
  const char* at(int64_t row) const {
    return base + row / inner * outer_bytes + row % inner * inner_bytes;
  }
  const char* base;
  int64_t width, inner, count, inner_bytes, outer_bytes;
};

// x itself if Rows can walk it, else a dense copy.
at::Tensor walkable(const at::Tensor& x) {
  const bool dense = x.dim() > 0 && (x.size(-1) <= 1 || x.stride(-1) == 1);
  return dense && x.dim() <= 3 ? x : x.contiguous();
}

using NormKernel = void (*)(const RowPointers&, int64_t, float);

void check_weight(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(x.dim() >= 1, "x must have at least one dimension");
  VLLM_CHECK_RANK(weight, 1);
  VLLM_CHECK_SIZE(weight, 0, x.size(-1));
  VLLM_CHECK_DTYPE(weight, x.scalar_type());
  VLLM_CHECK_CONTIGUOUS(weight);
}

at::Tensor dense_like(const at::Tensor& x) {
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

at::Tensor norm(const at::Tensor& x, const at::Tensor& weight, double eps, NormKernel kernel) {
  check_weight(x, weight);
  const at::Tensor source = walkable(x);
  const at::Tensor out = dense_like(x);
  const Rows rows(source);
  const int64_t row_bytes = rows.width * x.element_size();
  parallel_for(0, rows.count, rows_per_thread(rows.width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel({rows.at(r), nullptr, bytes(weight), mutable_bytes(out) + r * row_bytes, nullptr},
             rows.width, static_cast<float>(eps));
    }
  });
  return out;
}

using GateKernel = void (*)(const void*, void*, int64_t);

at::Tensor gate(const at::Tensor& x, GateKernel kernel) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) % 2 == 0,
              "x must be even in its last dimension, has shape ", x.sizes());
  const at::Tensor source = walkable(x);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() /= 2;
  const at::Tensor out = at::empty(shape, x.options());
  const Rows rows(source);
  const int64_t width = shape.back(), row_bytes = width * x.element_size();
  parallel_for(0, rows.count, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel(rows.at(r), mutable_bytes(out) + r * row_bytes, width);
    }
  });
  return out;
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return norm(x, weight, eps, kernels().rms_norm[dtype_of(x, "x")]);
}

at::Tensor gemma_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return norm(x, weight, eps, kernels().gemma_rms_norm[dtype_of(x, "x")]);
}

std::tuple<at::Tensor, at::Tensor> fused_add_rms_norm(const at::Tensor& x,
                                                      const at::Tensor& residual,
                                                      const at::Tensor& weight, double eps) {
  check_weight(x, weight);
  TORCH_CHECK(x.sizes() == residual.sizes(), "residual must have x's shape ", x.sizes(), ", has ",
              residual.sizes());
  VLLM_CHECK_DTYPE(residual, x.scalar_type());
  const auto kernel = kernels().rms_norm[dtype_of(x, "x")];
  const at::Tensor left = walkable(x), right = walkable(residual);
  const at::Tensor out = dense_like(x), added = dense_like(x);
  const Rows xs(left), residuals(right);
  const int64_t row_bytes = xs.width * x.element_size();
  parallel_for(0, xs.count, rows_per_thread(xs.width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      kernel({xs.at(r), residuals.at(r), bytes(weight), mutable_bytes(out) + r * row_bytes,
              mutable_bytes(added) + r * row_bytes},
             xs.width, static_cast<float>(eps));
    }
  });
  return {out, added};
}

at::Tensor silu_and_mul(const at::Tensor& x) {
  return gate(x, kernels().silu_and_mul[dtype_of(x, "x")]);
}

at::Tensor gelu_tanh_and_mul(const at::Tensor& x) {
  return gate(x, kernels().gelu_tanh_and_mul[dtype_of(x, "x")]);
}

namespace {

struct Rotation {
  const at::Tensor& cos;
  const at::Tensor& sin;
  const std::string& style;
};

void check_rotation(const at::Tensor& q, const at::Tensor& k, const Rotation& by) {
  const at::Tensor &cos = by.cos, &sin = by.sin;
  VLLM_CHECK_RANK(q, 3);
  VLLM_CHECK_RANK(k, 3);
  VLLM_CHECK_RANK(cos, 2);
  VLLM_CHECK_SIZE(k, 0, q.size(0));
  VLLM_CHECK_SIZE(k, 2, q.size(2));
  VLLM_CHECK_SIZE(cos, 0, q.size(0));
  TORCH_CHECK(sin.sizes() == cos.sizes(), "sin must have cos's shape ", cos.sizes(), ", has ",
              sin.sizes());
  TORCH_CHECK(2 * cos.size(1) <= q.size(2), "cos rotates ", 2 * cos.size(1),
              " dimensions, heads have ", q.size(2));
  TORCH_CHECK(by.style == "neox" || by.style == "interleaved",
              "style must be neox or interleaved, is ", by.style);
  VLLM_CHECK_DTYPE(k, q.scalar_type());
  VLLM_CHECK_DTYPE(sin, cos.scalar_type());
  if (cos.scalar_type() != at::kFloat) VLLM_CHECK_DTYPE(cos, q.scalar_type());
}

// Calls kernel(head, is_query) for every head of every token.
template <typename Kernel>
std::tuple<at::Tensor, at::Tensor> rotate_heads(const at::Tensor& q, const at::Tensor& k,
                                                const Rotation& by, const Kernel& kernel) {
  const at::Tensor queries = walkable(q), keys = walkable(k);
  const at::Tensor c = by.cos.contiguous(), s = by.sin.contiguous();
  const at::Tensor out_q = dense_like(q), out_k = dense_like(k);
  const Rows from_q(queries), from_k(keys);
  const int64_t num_tokens = q.size(0), head_dim = q.size(2), half = c.size(1);
  const int64_t head_bytes = head_dim * q.element_size(), angles = half * c.element_size();
  const auto rotate = [&](const Rows& from, const at::Tensor& out, int64_t token, bool is_query) {
    for (int64_t r = token * from.inner; r < (token + 1) * from.inner; ++r) {
      kernel(RotaryHead{from.at(r), mutable_bytes(out) + r * head_bytes, bytes(c) + token * angles,
                        bytes(s) + token * angles, static_cast<int>(half),
                        static_cast<int>(head_dim), by.style == "interleaved"},
             is_query);
    }
  };
  const int64_t width = (q.size(1) + k.size(1)) * head_dim;
  parallel_for(0, num_tokens, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      rotate(from_q, out_q, t, true);
      rotate(from_k, out_k, t, false);
    }
  });
  return {out_q, out_k};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& cos, const at::Tensor& sin,
                                          const std::string& style) {
  const Rotation by{cos, sin, style};
  check_rotation(q, k, by);
  const auto kernel = kernels().rotary[dtype_of(q, "q")][cos.scalar_type() == at::kFloat];
  return rotate_heads(q, k, by, [&](const RotaryHead& head, bool) { kernel(head); });
}

std::tuple<at::Tensor, at::Tensor> normed_rotary(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& q_weight,
                                                 const at::Tensor& k_weight, double eps,
                                                 const at::Tensor& cos, const at::Tensor& sin,
                                                 const std::string& style) {
  const Rotation by{cos, sin, style};
  check_rotation(q, k, by);
  check_weight(q, q_weight);
  check_weight(k, k_weight);
  TORCH_CHECK(q.size(2) <= kMaxNormedHead, "heads have ", q.size(2), " dimensions, at most ",
              kMaxNormedHead, " can be normalised and rotated together");
  const auto kernel = kernels().normed_rotary[dtype_of(q, "q")][cos.scalar_type() == at::kFloat];
  return rotate_heads(q, k, by, [&](const RotaryHead& head, bool is_query) {
    kernel(head, bytes(is_query ? q_weight : k_weight), static_cast<float>(eps));
  });
}

}  // namespace vllm::cpu
