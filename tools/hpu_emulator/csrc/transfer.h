// Copies between host and devices, streams and events.
#pragma once

#include <ATen/core/stack.h>
#include <c10/core/Stream.h>

#include "op_info.h"

namespace hpu_emulator {

// An asynchronous copy to the host arrives when the host waits for it, no earlier.
struct EventState {
  c10::Stream stream;
  uint64_t copies = 0;  // of the stream, issued before the event
  bool has_reads = false;
  double time_ms = 0;
};

c10::Stream current_stream(c10::DeviceIndex device);
c10::Stream exchange_stream(c10::Stream stream);
c10::Stream new_stream(c10::DeviceIndex device);

EventState record_event(c10::Stream stream);
// Delivers the copies before the event; counted as a read or as a wait when `waits`.
void finish_event(const EventState& event, bool waits);
void finish_stream(c10::Stream stream, bool waits);
void finish_device(bool waits);

// The host reads the device now: launches what is pending and waits.
void host_read(const char* kind, const std::string& op, int64_t bytes);

}  // namespace hpu_emulator
