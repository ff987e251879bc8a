#include "transfer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <chrono>
#include <cstring>
#include <list>
#include <mutex>

#include "alias.h"
#include "fallback.h"
#include "handlers.h"
#include "memory.h"
#include "observer.h"
#include "recipes.h"

namespace hpu_emulator {
namespace {

using Stack = torch::jit::Stack;

// A copy to the host that has been issued and not yet waited for.
struct Pending {
  c10::StreamId stream;
  uint64_t number;
  at::Tensor host;
  at::Tensor value;  // what the device held when the copy was issued
};

std::mutex mutex;
std::list<Pending> pending;
uint64_t num_copies = 0;
c10::StreamId next_stream = 1;
thread_local c10::StreamId stream_now = 0;

double now_ms() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

// Copies of `stream` (of all when negative) up to number `last`.
void deliver(c10::StreamId stream, uint64_t last) {
  std::list<Pending> arrived;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto item = pending.begin(); item != pending.end();) {
      const auto next = std::next(item);
      if ((stream < 0 || item->stream == stream) && item->number <= last) {
        arrived.splice(arrived.end(), pending, item);
      }
      item = next;
    }
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  for (const Pending& copy : arrived) {
    copy.host.copy_(copy.value);
  }
}

// Until it arrives the destination holds what nobody can take for the value.
void poison(const at::Tensor& host) {
  if (host.is_contiguous()) {
    std::memset(host.mutable_data_ptr(), host.scalar_type() == at::kBool ? 1 : 0xAB, host.nbytes());
  }
}

bool is_whole(const at::Tensor& tensor) {
  return tensor.is_contiguous() && tensor.storage_offset() == 0 &&
         tensor.nbytes() == tensor.storage().nbytes();
}

// The op that makes one piece of a view.
const OpInfo& gathering() {
  static const OpInfo& info = *[] {
    auto* made = new OpInfo();
    made->name = "hpu::gather_view";
    made->id = intern(made->name);
    made->arguments = {Argument::kValue};
    made->written = {false};
    return made;
  }();
  return info;
}

void download(const OpInfo& info, const at::Tensor& host, const at::Tensor& device, bool async) {
  // A view is gathered by the device before it is copied.
  if (recipe_settings().lazy ? !is_whole(device) : !device.is_contiguous()) {
    record(gathering(), {device}, {});
  }
  report_download(device, !async);
  Aliases aliases(device.device().index());
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (!async) {
    host_read("copy to host", info.name, static_cast<int64_t>(host.nbytes()));
    host.copy_(aliases.to_host(device));
    return;
  }
  flush();
  const at::Tensor value = aliases.to_host(device).clone();
  poison(host);
  const std::lock_guard<std::mutex> lock(mutex);
  pending.push_back({stream_now, ++num_copies, host, value});
}

void upload(const OpInfo& info, const at::Tensor& device, const at::Tensor& host) {
  TORCH_CHECK(host.device().is_cpu(), "cannot copy from ", host.device(), " to ", device.device());
  report_upload(device, host);
  exclude_from_workspace(*device.storage().unsafeGetStorageImpl());
  Aliases aliases(device.device().index());
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor memory = aliases.to_host(device);
  memory.copy_(host);
  narrow(info, memory);
  if (!is_whole(device)) {
    record(info, {device}, {});
  }
}

void copy_within(const c10::OperatorHandle& op, const OpInfo& info, Stack* stack) {
  const Stack arguments(stack->end() - 3, stack->end());
  const at::Tensor& to = arguments[0].toTensor();
  const at::Tensor& from = arguments[1].toTensor();
  if (!recipe_settings().compile_only) {
    Aliases destination(to.device().index());
    Aliases source(from.device().index());
    const at::AutoDispatchBelowADInplaceOrView guard;
    // One storage must stay one storage, so that overlaps are seen.
    Aliases& reader = from.device() == to.device() ? destination : source;
    const at::Tensor memory = destination.to_host(to);
    memory.copy_(reader.to_host(from));
    narrow(info, memory);
  }
  report_op(op, arguments, {arguments[0]});
  record(info, arguments, {arguments[0]});
}

void copy_(const c10::OperatorHandle& op, Stack* stack) {
  const OpInfo& info = info_of(op);
  const at::Tensor to = torch::jit::peek(*stack, 0, 3).toTensor();
  const at::Tensor from = torch::jit::peek(*stack, 1, 3).toTensor();
  const bool async = torch::jit::peek(*stack, 2, 3).toBool();
  if (to.device().type() != kHpu) {
    TORCH_CHECK(to.device().is_cpu(), "cannot copy from ", from.device(), " to ", to.device());
    download(info, to, from, async);
  } else if (from.device().type() != kHpu) {
    upload(info, to, from);
  } else {
    copy_within(op, info, stack);
  }
  torch::jit::drop(*stack, 3);
  stack->emplace_back(to);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool non_blocking) {
  at::Tensor to = dst;
  to.copy_(self, non_blocking);
  return dst;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  at::Tensor to = dst;
  to.resize_(self.sizes()).copy_(self);
  return dst;
}

at::Tensor& zero_(at::Tensor& self) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::zero_", "");
  if (!recipe_settings().compile_only &&
      !(is_whole(self) && zero_untouched(*self.storage().unsafeGetStorageImpl()))) {
    Aliases aliases(self.device().index());
    const at::AutoDispatchBelowADInplaceOrView guard;
    aliases.to_host(self).zero_();
  }
  const c10::IValue value(self);
  report_op(op, {value}, {value});
  record(info_of(op), {value}, {value});
  return self;
}

// Memory is not given to others before the work on it is done, whatever the stream.
void record_stream(at::Tensor&, c10::Stream) {}

}  // namespace

c10::Stream current_stream(c10::DeviceIndex device) {
  const c10::DeviceIndex index = device < 0 ? current_device() : device;
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kHpu, index), stream_now);
}

c10::Stream exchange_stream(c10::Stream stream) {
  const c10::Stream before = current_stream(stream.device_index());
  stream_now = stream.id();
  return before;
}

c10::Stream new_stream(c10::DeviceIndex device) {
  const std::lock_guard<std::mutex> lock(mutex);
  const c10::DeviceIndex index = device < 0 ? current_device() : device;
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kHpu, index), next_stream++);
}

EventState record_event(c10::Stream stream) {
  flush();
  EventState event{stream, 0, false, now_ms()};
  const std::lock_guard<std::mutex> lock(mutex);
  event.copies = num_copies;
  for (const Pending& copy : pending) {
    event.has_reads = event.has_reads || copy.stream == stream.id();
  }
  return event;
}

void finish_event(const EventState& event, bool waits) {
  if (waits) {
    notify_sync(event.has_reads ? "async_read" : "event", "Event.synchronize", 0);
    if (!event.has_reads) {
      report_wait("event");
    }
  }
  deliver(event.stream.id(), event.copies);
}

void finish_stream(c10::Stream stream, bool waits) {
  flush();
  if (waits) {
    report_wait("stream");
    notify_sync("stream", "Stream.synchronize", 0);
  }
  deliver(stream.id(), UINT64_MAX);
}

void finish_device(bool waits) {
  flush();
  if (waits) {
    report_wait("device");
    notify_sync("device", "torch.hpu.synchronize", 0);
  }
  deliver(-1, UINT64_MAX);
}

void host_read(const char* kind, const std::string& op, int64_t bytes) {
  flush();
  report_wait(kind);
  notify_sync(kind, op, bytes);
  deliver(-1, UINT64_MAX);
}

}  // namespace hpu_emulator

TORCH_LIBRARY_IMPL(aten, HPU, library) {
  library.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&hpu_emulator::copy_>());
  library.impl("_copy_from", &hpu_emulator::copy_from);
  library.impl("_copy_from_and_resize", &hpu_emulator::copy_from_and_resize);
  library.impl("record_stream", &hpu_emulator::record_stream);
  library.impl("zero_", &hpu_emulator::zero_);
}
