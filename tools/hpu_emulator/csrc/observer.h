// Who wants to know what runs on the device implements this.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

namespace hpu_emulator {

// A recipe that was launched, or compiled without a launch (PT_COMPILE_ONLY_MODE).
struct Launch {
  int64_t recipe = 0;
  const char* mode = "";  // lazy, eager, compile, replay
  int64_t num_ops = 0;
  bool is_new = false;  // not known to this process before
};

struct Observer {
  virtual ~Observer() = default;
  // An op has run. Arguments and results are the caller's, on the device. Views that compute
  // nothing and allocations are not reported; copies within the device are.
  virtual void on_op(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
                     c10::ArrayRef<c10::IValue> results) = 0;
  // Host memory was copied to the device.
  virtual void on_upload(const at::Tensor& device, const at::Tensor& host) {}
  // Device memory is about to be read by the host; `waits` unless the copy is asynchronous.
  virtual void on_download(const at::Tensor& device, bool waits) {}
  // The host waits for the device.
  virtual void on_wait(const char* kind) {}
  // An op runs on the host instead of the device.
  virtual void on_fallback(const c10::OperatorHandle& op) {}
  virtual void on_launch(const Launch& launch) {}
};

// Not owned; both may be called while an op runs.
void add_observer(Observer* observer);
void remove_observer(Observer* observer);
bool is_observed();

void report_op(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
               c10::ArrayRef<c10::IValue> results);
void report_upload(const at::Tensor& device, const at::Tensor& host);
void report_download(const at::Tensor& device, bool waits);
void report_wait(const char* kind);
void report_fallback(const c10::OperatorHandle& op);
void report_launch(const Launch& launch);

}  // namespace hpu_emulator
