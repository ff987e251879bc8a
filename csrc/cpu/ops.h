// Op entry points: check arguments, divide the work, call the kernels in use.
//
// vllm/ops describes what each computes; parameters have the same names and meanings.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>

namespace vllm::cpu {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
std::tuple<at::Tensor, at::Tensor> fused_add_rms_norm(const at::Tensor& x,
                                                      const at::Tensor& residual,
                                                      const at::Tensor& weight, double eps);
at::Tensor gemma_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

at::Tensor silu_and_mul(const at::Tensor& x);
at::Tensor gelu_tanh_and_mul(const at::Tensor& x);

std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& cos, const at::Tensor& sin,
                                          const std::string& style);

void write_kv(const at::Tensor& k, const at::Tensor& v, at::Tensor cache,
              const at::Tensor& slot_mapping);
void write_latent(const at::Tensor& latent, at::Tensor cache, const at::Tensor& slot_mapping);

at::Tensor paged_attention(const at::Tensor& q, const at::Tensor& cache,
                           const at::Tensor& query_start, const at::Tensor& seq_lens,
                           const at::Tensor& block_table, int64_t value_dim, double scale,
                           int64_t window, double softcap);
at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& cache,
                         const at::Tensor& query_start, const at::Tensor& seq_lens,
                         const at::Tensor& block_table, int64_t latent_dim, double scale,
                         int64_t window, double softcap);

at::Tensor moe(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
               const at::Tensor& topk_ids, const at::Tensor& topk_weights, const std::string& act);

at::Tensor exponential_noise(const at::Tensor& seeds, const at::Tensor& positions,
                             int64_t vocab_size);
void apply_token_bitmask(at::Tensor logits, const at::Tensor& masks);

}  // namespace vllm::cpu
