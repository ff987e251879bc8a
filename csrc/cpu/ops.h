// Op entry points: check arguments, divide the work, call the kernels in use.
//
// vllm/ops describes what each computes; parameters have the same names and meanings.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
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
std::tuple<at::Tensor, at::Tensor> normed_rotary(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& q_weight,
                                                 const at::Tensor& k_weight, double eps,
                                                 const at::Tensor& cos, const at::Tensor& sin,
                                                 const std::string& style);

// A weight [outputs, inputs] in the layout that products with it read: [panels, depth, 64]. Of a
// gated one, which has gates in its first half, panels hold 32 of either half.
at::Tensor pack_weight(const at::Tensor& weight, bool gated);
// Memory for that, to be filled by pack_rows: what no row of the weight is packed to is zero.
at::Tensor empty_packed(int64_t outputs, int64_t inputs, bool gated, at::ScalarType dtype);
// Packs outputs [first, first + T) of a weight, `rows` [T, inputs]; of a gated weight those of a
// `half`: 0 for the gates, 1 for what they gate.
void pack_rows(const at::Tensor& rows, at::Tensor packed, int64_t first, int64_t half);
// Rows `ids` [T] of a packed weight -> [T, inputs].
at::Tensor packed_rows(const at::Tensor& packed, const at::Tensor& ids, int64_t outputs,
                       int64_t inputs);
// x [T, inputs] W^T + b -> [T, outputs], of x's dtype or, if `wide`, float32.
at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed,
                         const std::optional<at::Tensor>& bias, int64_t outputs, bool wide);
// For each row of x W^T + b the greatest output [T] float32, and which that is, the first of
// equals: [T] int32. NaN and -1 where there is NaN; -inf and -1 where there is nothing else. The
// first `outputs` count.
std::tuple<at::Tensor, at::Tensor> packed_greatest(const at::Tensor& x, const at::Tensor& packed,
                                                   const std::optional<at::Tensor>& bias,
                                                   int64_t outputs);
// act(x G^T + a) * (x U^T + b) -> [T, outputs]; the bias is in order of panels, 64 each.
at::Tensor packed_gated(const at::Tensor& x, const at::Tensor& packed,
                        const std::optional<at::Tensor>& bias, int64_t outputs,
                        const std::string& act);

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

std::tuple<at::Tensor, at::Tensor> choose_experts(const at::Tensor& logits,
                                                  const std::optional<at::Tensor>& correction,
                                                  int64_t top_k, const std::string& score,
                                                  bool renormalise, int64_t groups,
                                                  int64_t top_groups, double scale);
// Mixture of experts; w13 and w2 are stacked, of each expert what pack_weight makes, w13 gated.
// A choice with the id -1 adds nothing.
at::Tensor packed_moe(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                      const at::Tensor& topk_ids, const at::Tensor& topk_weights,
                      int64_t intermediate, const std::string& act);

at::Tensor greatest(const at::Tensor& values);
at::Tensor choose(const at::Tensor& logits, const at::Tensor& draws, const at::Tensor& slots,
                  const at::Tensor& positions, const at::Tensor& temperature,
                  const at::Tensor& log_min_p, const at::Tensor& top_k, const at::Tensor& top_p,
                  const at::Tensor& seeds);
std::tuple<at::Tensor, at::Tensor, at::Tensor> gather_logprobs(const at::Tensor& scores,
                                                               const at::Tensor& token_ids,
                                                               int64_t k, bool normalizes);
void apply_token_bitmask(at::Tensor logits, const at::Tensor& masks);

}  // namespace vllm::cpu
