// The one table of native ops. Python reaches them as torch.ops.vllm.<name>.

#include <Python.h>
#include <torch/library.h>

#include "cpu/collectives.h"
#include "cpu/graph.h"
#include "cpu/ops.h"
#include "cpu/select.h"

TORCH_LIBRARY(vllm, m) {
  m.def("select_isa(str name) -> str", &vllm::cpu::select_isa);
  m.def("available_isas() -> str[]", &vllm::cpu::available_isas);

  m.def("join_ranks(int fd, int rank, int size, bool spins) -> int", &vllm::cpu::join_ranks);
  m.def("sum_over_ranks(Tensor(a!) x, int ranks) -> ()");
  m.def("scatter_sum_over_ranks(Tensor x, int ranks) -> Tensor");
  m.def("gather_over_ranks(Tensor x, int ranks) -> Tensor");
  m.def("greatest_over_ranks(Tensor values, Tensor ids, int ranks) -> Tensor");
  m.def("exchange_over_ranks(Tensor x, int[] sent, int[] received, int ranks) -> Tensor");
  m.def("broadcast_over_ranks(Tensor x, int source, int ranks) -> Tensor");
  m.def("limit_ranks(int ranks, int seconds) -> ()", &vllm::cpu::limit_ranks);
  m.def("where_ranks(int ranks) -> str", &vllm::cpu::where_ranks);

  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def(
      "fused_add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> "
      "(Tensor, Tensor)");
  m.def("gemma_rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("silu_and_mul(Tensor x) -> Tensor");
  m.def("gelu_tanh_and_mul(Tensor x) -> Tensor");
  m.def("rotary(Tensor q, Tensor k, Tensor cos, Tensor sin, str style) -> (Tensor, Tensor)");
  m.def(
      "normed_rotary(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, float eps, Tensor cos, "
      "Tensor sin, str style) -> (Tensor, Tensor)");
  m.def("pack_weight(Tensor weight, bool gated=False) -> Tensor");
  m.def("empty_packed(int outputs, int inputs, bool gated, ScalarType dtype) -> Tensor",
        &vllm::cpu::empty_packed);
  m.def("pack_rows(Tensor rows, Tensor(a!) packed, int first, int half=-1) -> ()");
  m.def("packed_rows(Tensor packed, Tensor ids, int outputs, int inputs) -> Tensor");
  m.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, int outputs, bool wide) -> Tensor");
  m.def("packed_greatest(Tensor x, Tensor packed, Tensor? bias, int outputs) -> (Tensor, Tensor)");
  m.def("packed_gated(Tensor x, Tensor packed, Tensor? bias, int outputs, str act) -> Tensor");
  m.def("write_kv(Tensor k, Tensor v, Tensor(a!) cache, Tensor slot_mapping) -> ()");
  m.def("write_latent(Tensor latent, Tensor(a!) cache, Tensor slot_mapping) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor cache, Tensor query_start, Tensor seq_lens, "
      "Tensor block_table, int value_dim, float scale, int window, float softcap) -> Tensor");
  m.def(
      "mla_attention(Tensor q, Tensor cache, Tensor query_start, Tensor seq_lens, "
      "Tensor block_table, int latent_dim, float scale, int window, float softcap) -> Tensor");
  m.def(
      "choose_experts(Tensor logits, Tensor? correction, int top_k, str score, bool renormalise, "
      "int groups, int top_groups, float scale) -> (Tensor, Tensor)");
  m.def(
      "packed_moe(Tensor x, Tensor w13, Tensor w2, Tensor topk_ids, Tensor topk_weights, "
      "int intermediate, str act) -> Tensor");
  m.def("greatest(Tensor values) -> Tensor");
  m.def(
      "choose(Tensor logits, Tensor draws, Tensor slots, Tensor positions, Tensor temperature, "
      "Tensor log_min_p, Tensor top_k, Tensor top_p, Tensor seeds) -> Tensor");
  m.def(
      "gather_logprobs(Tensor scores, Tensor token_ids, int k, bool normalizes) -> "
      "(Tensor, Tensor, Tensor)");
  m.def("apply_token_bitmask(Tensor(a!) logits, Tensor masks) -> ()");

  m.class_<vllm::cpu::Graph>("Graph")
      .def(torch::init<std::vector<at::Tensor>, const std::vector<at::Tensor>&>())
      .def("end", &vllm::cpu::Graph::end)
      .def("replay", &vllm::cpu::Graph::replay);
}

TORCH_LIBRARY_IMPL(vllm, CPU, m) {
  m.impl("sum_over_ranks", &vllm::cpu::sum_over_ranks);
  m.impl("scatter_sum_over_ranks", &vllm::cpu::scatter_sum_over_ranks);
  m.impl("gather_over_ranks", &vllm::cpu::gather_over_ranks);
  m.impl("greatest_over_ranks", &vllm::cpu::greatest_over_ranks);
  m.impl("exchange_over_ranks", &vllm::cpu::exchange_over_ranks);
  m.impl("broadcast_over_ranks", &vllm::cpu::broadcast_over_ranks);
  m.impl("rms_norm", &vllm::cpu::rms_norm);
  m.impl("fused_add_rms_norm", &vllm::cpu::fused_add_rms_norm);
  m.impl("gemma_rms_norm", &vllm::cpu::gemma_rms_norm);
  m.impl("silu_and_mul", &vllm::cpu::silu_and_mul);
  m.impl("gelu_tanh_and_mul", &vllm::cpu::gelu_tanh_and_mul);
  m.impl("rotary", &vllm::cpu::rotary);
  m.impl("normed_rotary", &vllm::cpu::normed_rotary);
  m.impl("pack_weight", &vllm::cpu::pack_weight);
  m.impl("pack_rows", &vllm::cpu::pack_rows);
  m.impl("packed_rows", &vllm::cpu::packed_rows);
  m.impl("packed_linear", &vllm::cpu::packed_linear);
  m.impl("packed_greatest", &vllm::cpu::packed_greatest);
  m.impl("packed_gated", &vllm::cpu::packed_gated);
  m.impl("write_kv", &vllm::cpu::write_kv);
  m.impl("write_latent", &vllm::cpu::write_latent);
  m.impl("paged_attention", &vllm::cpu::paged_attention);
  m.impl("mla_attention", &vllm::cpu::mla_attention);
  m.impl("choose_experts", &vllm::cpu::choose_experts);
  m.impl("packed_moe", &vllm::cpu::packed_moe);
  m.impl("greatest", &vllm::cpu::greatest);
  m.impl("choose", &vllm::cpu::choose);
  m.impl("gather_logprobs", &vllm::cpu::gather_logprobs);
  m.impl("apply_token_bitmask", &vllm::cpu::apply_token_bitmask);
}

// Importing the module is what registers the ops; it has nothing else.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
