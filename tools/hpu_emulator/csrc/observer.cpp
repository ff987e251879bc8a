#include "observer.h"

#include <algorithm>
#include <vector>

namespace hpu_emulator {
namespace {

std::vector<Observer*> observers;

}  // namespace

void add_observer(Observer* observer) { observers.push_back(observer); }

void remove_observer(Observer* observer) {
  observers.erase(std::remove(observers.begin(), observers.end(), observer), observers.end());
}

bool is_observed() { return !observers.empty(); }

// By index: an observer may remove itself.
void report_op(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
               c10::ArrayRef<c10::IValue> results) {
  for (size_t i = 0; i < observers.size(); ++i) {
    observers[i]->on_op(op, arguments, results);
  }
}

void report_upload(const at::Tensor& device, const at::Tensor& host) {
  for (size_t i = 0; i < observers.size(); ++i) {
    observers[i]->on_upload(device, host);
  }
}

void report_download(const at::Tensor& device, bool waits) {
  for (size_t i = 0; i < observers.size(); ++i) {
    observers[i]->on_download(device, waits);
  }
}

void report_wait(const char* kind) {
  for (size_t i = 0; i < observers.size(); ++i) {
    observers[i]->on_wait(kind);
  }
}

void report_fallback(const c10::OperatorHandle& op) {
  for (size_t i = 0; i < observers.size(); ++i) {
    observers[i]->on_fallback(op);
  }
}

void report_launch(const Launch& launch) {
  for (size_t i = 0; i < observers.size(); ++i) {
    observers[i]->on_launch(launch);
  }
}

}  // namespace hpu_emulator
