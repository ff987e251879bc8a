// Memory of the emulated devices: host memory that is accounted for as if it were the device's.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>

#include <cstdint>

namespace hpu_emulator {

constexpr c10::DeviceType kHpu = c10::DeviceType::HPU;

// All sizes in bytes.
struct MemoryStats {
  int64_t limit = 0;
  int64_t in_use = 0;
  int64_t max_in_use = 0;
  int64_t num_allocs = 0;
  int64_t num_frees = 0;
  int64_t active_allocs = 0;
  int64_t max_alloc_size = 0;
  int64_t graphs = 0;     // charged for captured graphs
  int64_t workspace = 0;  // largest workspace of the recipes launched so far
};

c10::DeviceIndex device_count();
void set_device_count(int count);
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);

// In a forked process: whatever it allocates has to acquire its device first, and cannot.
void forget_acquired_devices();

MemoryStats memory_stats(c10::DeviceIndex index);
void set_memory_limit(c10::DeviceIndex index, int64_t bytes);
void reset_peak_memory(c10::DeviceIndex index);
void reset_accumulated_memory(c10::DeviceIndex index);
// Positive to take, negative to give back; throws when the device has less left.
void charge_graph_memory(c10::DeviceIndex index, int64_t bytes);

// Bytes that the graph under construction has allocated and would need as workspace.
// Ends the graph: what is still alive becomes ordinary memory, the rest was workspace if the
// graph `counts`, which it does unless it is empty.
int64_t close_workspace(c10::DeviceIndex index, bool counts = true);
// Whether the memory of this storage was allocated since the last close_workspace().
bool is_of_open_graph(const c10::StorageImpl& storage);
// Filled from the host, memory is no result of the open graph and never its workspace.
void exclude_from_workspace(const c10::StorageImpl& storage);
// Whether allocations belong to graphs that end with close_workspace() (lazy mode, compiled
// regions), or stand for themselves (eager mode).
void set_workspace_tracking(bool enabled);
bool is_workspace_tracked();

c10::Allocator* allocator();
// Host memory that becomes memory of the device, without a copy.
c10::DataPtr adopt(c10::Storage host, c10::DeviceIndex index);
// Zeroes a whole allocation without touching it; false where that is not possible.
bool zero_untouched(const c10::StorageImpl& storage);

}  // namespace hpu_emulator
