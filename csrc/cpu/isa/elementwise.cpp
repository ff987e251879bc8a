// Norms, gated activations and rotary embedding: one pass over a row, float32 inside.

#include "cpu/isa/activation.h"
#include "cpu/isa/kernels_of_isa.h"
#include "cpu/isa/vec.h"

namespace vllm::cpu::VLLM_ISA {
namespace {

template <typename T, bool kGemma>
void rms_norm(const RowPointers& row, int64_t width, float eps) {
  const T* in = static_cast<const T*>(row.in);
  const T* residual = static_cast<const T*>(row.residual);
  const T* weight = static_cast<const T*>(row.weight);
  T* out = static_cast<T*>(row.out);
  Vec squares = {};
  if (residual != nullptr) {
    T* added = static_cast<T*>(row.sum);
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec x = rounded_to<T>(load_n(in + i, n) + load_n(residual + i, n));
      store_n(added + i, x, n);
      squares += x * x;
    });
    in = added;
  } else {
    for_each_vector(width, [&](int64_t i, int n) {
      const Vec x = load_n(in + i, n);
      squares += x * x;
    });
  }
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
  for_each_vector(width, [&](int64_t i, int n) {
    const Vec x = load_n(in + i, n) * scale;
    const Vec w = load_n(weight + i, n);
    store_n(out + i, kGemma ? x * (w + 1.0f) : rounded_to<T>(x) * w, n);
  });
}

template <typename T, typename Activation>
inline void gate(const void* in, void* out, int64_t width, Activation activation) {
  const T* gates = static_cast<const T*>(in);
  const T* values = gates + width;
  for_each_vector(width, [&](int64_t i, int n) {
    const Vec activated = rounded_to<T>(activation(load_n(gates + i, n)));
    store_n(static_cast<T*>(out) + i, activated * load_n(values + i, n), n);
  });
}

template <typename T>
void silu_and_mul(const void* in, void* out, int64_t width) {
  gate<T>(in, out, width, silu);
}

template <typename T>
void gelu_tanh_and_mul(const void* in, void* out, int64_t width) {
  gate<T>(in, out, width, gelu_tanh);
}

template <typename T>
void add_weighted(const WeightedSum& sum) {
  for_each_vector(sum.width, [&](int64_t i, int n) {
    Vec total = {};
    for (int64_t c = 0; c < sum.count; ++c) {
      total += sum.weights[c] * load_n(sum.rows + sum.chosen[c] * sum.width + i, n);
    }
    store_n(static_cast<T*>(sum.out) + i, total, n);
  });
}

template <typename T>
void add_arrays(const char* const* arrays, int count, int64_t begin, int64_t end, void* out) {
  for_each_vector(end - begin, [&](int64_t i, int n) {
    Vec total = load_n(reinterpret_cast<const T*>(arrays[0]) + begin + i, n);
    for (int a = 1; a < count; ++a) {
      total += load_n(reinterpret_cast<const T*>(arrays[a]) + begin + i, n);
    }
    store_n(static_cast<T*>(out) + i, total, n);
  });
}

template <typename T, typename C>
void rotary(const RotaryHead& head) {
  const T* in = static_cast<const T*>(head.in);
  const C* cos = static_cast<const C*>(head.cos);
  const C* sin = static_cast<const C*>(head.sin);
  T* out = static_cast<T*>(head.out);
  const int half = head.half;
  if (head.interleaved) {
    for (int i = 0; i < half; ++i) {
      const float a = load_one(in + 2 * i), b = load_one(in + 2 * i + 1);
      const float c = load_one(cos + i), s = load_one(sin + i);
      store_first(out + 2 * i, splat(a * c - b * s), 1);
      store_first(out + 2 * i + 1, splat(b * c + a * s), 1);
    }
  } else {
    for_each_vector(half, [&](int64_t i, int n) {
      const Vec a = load_n(in + i, n), b = load_n(in + half + i, n);
      const Vec c = load_n(cos + i, n), s = load_n(sin + i, n);
      store_n(out + i, a * c - b * s, n);
      store_n(out + half + i, b * c + a * s, n);
    });
  }
  for (int i = 2 * half; i < head.head_dim; ++i) out[i] = in[i];
}

// The head is normalised, and rounded as if it were stored, before it is rotated.
template <typename T, typename C>
void normed_rotary(const RotaryHead& head, const void* weight, float eps) {
  T normed[kMaxNormedHead];
  rms_norm<T, false>({head.in, nullptr, weight, normed, nullptr}, head.head_dim, eps);
  RotaryHead rotated = head;
  rotated.in = normed;
  rotary<T, C>(rotated);
}

template <typename T>
void add(KernelTable& table, DType dtype) {
  table.rms_norm[dtype] = rms_norm<T, false>;
  table.gemma_rms_norm[dtype] = rms_norm<T, true>;
  table.silu_and_mul[dtype] = silu_and_mul<T>;
  table.gelu_tanh_and_mul[dtype] = gelu_tanh_and_mul<T>;
  table.add_weighted[dtype] = add_weighted<T>;
  table.add_arrays[dtype] = add_arrays<T>;
  table.rotary[dtype][0] = rotary<T, T>;
  table.rotary[dtype][1] = rotary<T, float>;
  table.normed_rotary[dtype][0] = normed_rotary<T, T>;
  table.normed_rotary[dtype][1] = normed_rotary<T, float>;
}

}  // namespace

void add_elementwise(KernelTable& table) {
  add<float>(table, kFloat32);
  add<BFloat16>(table, kBFloat16);
  add<Float16>(table, kFloat16);
}

}  // namespace vllm::cpu::VLLM_ISA
