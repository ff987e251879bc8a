// HPU graphs: the device ops of a capture, issued again on the same memory without the program.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <thread>
#include <unordered_map>
#include <vector>

#include "observer.h"

namespace hpu_emulator {

// Geometry of a tensor of a graph, on the memory of one of its slots.
struct TensorSpec {
  int64_t slot = -1;
  caffe2::TypeMeta dtype;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t offset = 0;  // elements
  bool is_conj = false;
  bool is_neg = false;

  int64_t extent_bytes() const;
};

// One argument: a tensor of a slot, a list, or a value that every replay sees alike.
struct Recorded {
  enum class Kind : uint8_t { kConstant, kTensor, kTensors, kOptionalTensors, kTensorLists };
  Kind kind = Kind::kConstant;
  c10::IValue constant;
  TensorSpec tensor;
  std::vector<Recorded> items;
};

// Memory that ops of a graph read or write.
struct Slot {
  enum class Kind : uint8_t {
    kOutside,  // from before the capture: an input, a weight, a cache
    kInside,   // made and dropped by the graph
    kResult,   // made by the graph, alive at the end of the capture: overwritten by each replay
  };
  Kind kind = Kind::kOutside;
  c10::weak_intrusive_ptr<c10::StorageImpl> captured;
  c10::Storage storage;                 // now; null for kInside between replays
  bool is_allocated_by_replay = false;  // by no op: its first use finds it uninitialised
  int64_t bytes = 0;
  int64_t extent_bytes = 0;  // that the ops reach
  int64_t last_use = -1;     // index of an op
};

struct RecordedOp {
  c10::OperatorHandle op;
  bool is_collective = false;
  std::vector<Recorded> arguments;
  std::vector<Recorded> results;  // constant for those that are arguments
  std::vector<int64_t> allocates;
  std::vector<int64_t> frees;
};

// A graph is captured and replayed by one thread at a time.
class Recorder final : public Observer {
 public:
  Recorder() = default;
  ~Recorder() override;
  Recorder(const Recorder&) = delete;

  // With `dry_run` nothing is computed: a replay must follow before results are read.
  void begin(bool dry_run);
  // Ends the capture; `keeps_all` charges the device for every intermediate instead of the most
  // that live at once. Throws, and forgets the graph, when the device has no room for that.
  void end(bool keeps_all);
  // Ends a capture that failed. Does nothing outside of one.
  void abort();
  void replay();
  // Frees what the graph holds.
  void reset();

  // Of the captured graph, in the order of later bind() calls.
  void set_inputs(std::vector<at::Tensor> inputs);
  // The next replays work on the memory of these. Checks that they reach as far as was captured.
  void bind(const std::vector<at::Tensor>& inputs);
  void drop_inputs();
  // Indices of the inputs that the graph uses.
  std::vector<int64_t> used_inputs() const;

  bool is_captured() const { return is_captured_; }
  int64_t num_ops() const { return static_cast<int64_t>(ops_.size()); }
  int64_t charged_bytes() const { return charged_bytes_; }
  const std::vector<int64_t>& recipes() const { return recipes_; }

  void on_op(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
             c10::ArrayRef<c10::IValue> results) override;
  void on_upload(const at::Tensor& device, const at::Tensor& host) override;
  void on_download(const at::Tensor& device, bool waits) override;
  void on_wait(const char* kind) override;
  void on_fallback(const c10::OperatorHandle& op) override;
  void on_launch(const Launch& launch) override;

 private:
  struct Input {
    TensorSpec spec;
    bool is_used = false;
  };

  bool is_mine() const;
  void refuse(const std::string& what) const;
  void stop_observing();
  int64_t slot_of(const c10::Storage& storage, bool is_result);
  TensorSpec spec_of(const at::Tensor& tensor, int64_t slot);
  Recorded record_argument(const c10::IValue& value);
  Recorded record_result(const c10::IValue& value, std::vector<int64_t>& made);
  void settle();
  int64_t peak_bytes() const;
  int64_t total_bytes() const;

  void run(RecordedOp& op, torch::jit::Stack& stack);
  void store(const Recorded& recorded, const c10::IValue& result);
  at::Tensor tensor_of(const TensorSpec& spec) const;
  c10::IValue value_of(const Recorded& recorded) const;

  bool is_capturing_ = false;
  bool is_captured_ = false;
  bool was_compile_only_ = false;
  std::thread::id thread_;
  c10::DeviceIndex device_ = 0;
  int64_t charged_bytes_ = 0;
  std::vector<Slot> slots_;
  std::unordered_map<const c10::StorageImpl*, int64_t> slot_of_;
  std::vector<RecordedOp> ops_;
  std::vector<int64_t> recipes_;
  std::vector<Input> inputs_;
};

// Whether a graph is being captured by this thread.
bool is_capturing();

}  // namespace hpu_emulator
