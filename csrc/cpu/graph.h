// The ops of a forward pass, captured once and replayed without Python.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <torch/custom_class.h>

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace vllm::cpu {

// Captures what the calling thread dispatches from construction to `end`: every op, its plain
// arguments, and which tensors are inputs, results of earlier ops, or constants. A replay makes the
// same calls with other inputs of the same shapes. Sizes and numbers that the captured code
// computed are part of the graph: it holds for calls that would compute the same ones.
class Graph : public torch::CustomClassHolder {
 public:
  // `constants` are all other tensors the code may read or write, such as weights and caches.
  Graph(std::vector<at::Tensor> inputs, const std::vector<at::Tensor>& constants);
  ~Graph() override;

  // Ends the capture. "" if `output` can be replayed, else why not.
  std::string end(const at::Tensor& output);
  // The output for other inputs, in the order of the first ones.
  at::Tensor replay(const std::vector<at::Tensor>& inputs);

 private:
  // A tensor by its number, a list of arguments, or something that is always the same.
  struct Argument {
    int number = -1;
    bool is_list = false;
    std::vector<Argument> elements;
    c10::IValue constant;  // of a list: an empty one of its type
  };
  struct Result {
    bool is_list = false;
    std::vector<int> numbers;
  };
  struct Call {
    c10::OperatorHandle op;
    std::vector<Argument> arguments;
    std::vector<Result> results;
    std::vector<int> unused_after;
  };

  static std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& function);
  static void on_end(const at::RecordFunction& function, at::ObserverContext*);

  void stop();
  void refuse(const std::string& reason);
  int number(const at::Tensor& tensor);
  int find(const at::Tensor& tensor) const;  // its number, or -1
  Argument argument(const c10::IValue& value, const std::string& op);
  Result result(const c10::IValue& value, const std::string& op);
  void find_last_uses();
  c10::IValue value_of(const Argument& argument) const;
  void keep(const Result& result, c10::IValue value);

  size_t num_inputs_;
  std::vector<Call> calls_;
  std::vector<at::Tensor> values_;  // by number; while it replays
  int output_ = -1;

  // While it captures.
  at::CallbackHandle callback_ = 0;
  bool captures_ = false;
  int depth_ = 0;
  std::string reason_;
  std::unordered_map<const c10::TensorImpl*, int> numbers_;
  std::unordered_set<const c10::TensorImpl*> constants_;
  std::vector<at::Tensor> alive_;  // so that no address is used twice
  int count_ = 0;
};

}  // namespace vllm::cpu
