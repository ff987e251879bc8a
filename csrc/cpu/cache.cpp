// Writing to the paged KV cache. Layouts: vllm/ops/cache.py.

#include <cstring>

#include "common/check.h"
#include "cpu/dtype.h"
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace vllm::cpu {
namespace {

// Tokens a thread should at least have: below, waking it costs more than the copy.
constexpr int64_t kGrainBytes = 64 * 1024;

int64_t grain(int64_t bytes_per_token) {
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_token));
}

}  // namespace

void write_kv(const at::Tensor& k, const at::Tensor& v, at::Tensor cache,
              const at::Tensor& slot_mapping) {
  VLLM_CHECK_RANK(k, 3);
  VLLM_CHECK_RANK(v, 3);
  VLLM_CHECK_RANK(cache, 3);
  VLLM_CHECK_RANK(slot_mapping, 1);
  const int64_t num_tokens = k.size(0), num_heads = k.size(1);
  const int64_t head_dim = k.size(2), value_dim = v.size(2);
  VLLM_CHECK_SIZE(v, 0, num_tokens);
  VLLM_CHECK_SIZE(v, 1, num_heads);
  VLLM_CHECK_SIZE(cache, 1, num_heads);
  VLLM_CHECK_SIZE(slot_mapping, 0, num_tokens);
  VLLM_CHECK_DTYPE(v, k.scalar_type());
  VLLM_CHECK_DTYPE(cache, k.scalar_type());
  VLLM_CHECK_DTYPE(slot_mapping, at::kLong);
  VLLM_CHECK_DENSE_ROWS(k);
  VLLM_CHECK_DENSE_ROWS(v);
  VLLM_CHECK_DENSE_ROWS(cache);
  VLLM_CHECK_CONTIGUOUS(slot_mapping);
  const int64_t block_size = cache.size(2) / (head_dim + value_dim);
  TORCH_CHECK(block_size * (head_dim + value_dim) == cache.size(2), "cache of shape ",
              cache.sizes(), " does not hold heads of ", head_dim, " + ", value_dim);
  const auto write_key = kernels().write_key[dtype_of(k, "k")];
  const int64_t element = k.element_size(), num_slots = cache.size(0) * block_size;
  const int64_t* slots = slot_mapping.const_data_ptr<int64_t>();
  char* base = mutable_bytes(cache);
  parallel_for(0, num_tokens, grain(num_heads * (head_dim + value_dim) * element),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   TORCH_CHECK(slots[t] >= 0 && slots[t] < num_slots, "slot_mapping[", t,
                               "] = ", slots[t], " is outside the cache of ", num_slots,
                               " entries");
                   const int64_t block = slots[t] / block_size, offset = slots[t] % block_size;
                   for (int64_t h = 0; h < num_heads; ++h) {
                     char* out = base + (block * cache.stride(0) + h * cache.stride(1)) * element;
                     write_key(bytes(k) + (t * k.stride(0) + h * k.stride(1)) * element,
                               static_cast<int>(head_dim), static_cast<int>(block_size),
                               static_cast<int>(offset), out);
                     std::memcpy(out + (head_dim * block_size + offset * value_dim) * element,
                                 bytes(v) + (t * v.stride(0) + h * v.stride(1)) * element,
                                 value_dim * element);
                   }
                 }
               });
}

void write_latent(const at::Tensor& latent, at::Tensor cache, const at::Tensor& slot_mapping) {
  VLLM_CHECK_RANK(latent, 2);
  VLLM_CHECK_RANK(cache, 3);
  VLLM_CHECK_RANK(slot_mapping, 1);
  const int64_t num_tokens = latent.size(0), width = latent.size(1);
  VLLM_CHECK_SIZE(cache, 2, width);
  VLLM_CHECK_SIZE(slot_mapping, 0, num_tokens);
  VLLM_CHECK_DTYPE(cache, latent.scalar_type());
  VLLM_CHECK_DTYPE(slot_mapping, at::kLong);
  VLLM_CHECK_DENSE_ROWS(latent);
  VLLM_CHECK_DENSE_ROWS(cache);
  VLLM_CHECK_CONTIGUOUS(slot_mapping);
  const int64_t element = latent.element_size(), block_size = cache.size(1);
  const int64_t num_slots = cache.size(0) * block_size;
  const int64_t* slots = slot_mapping.const_data_ptr<int64_t>();
  char* base = mutable_bytes(cache);
  parallel_for(0, num_tokens, grain(width * element), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      TORCH_CHECK(slots[t] >= 0 && slots[t] < num_slots, "slot_mapping[", t, "] = ", slots[t],
                  " is outside the cache of ", num_slots, " entries");
      const int64_t entry =
          slots[t] / block_size * cache.stride(0) + slots[t] % block_size * cache.stride(1);
      std::memcpy(base + entry * element, bytes(latent) + t * latent.stride(0) * element,
                  width * element);
    }
  });
}

}  // namespace vllm::cpu
