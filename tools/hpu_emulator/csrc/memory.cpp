#include "memory.h"

#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>

#include "handlers.h"

namespace hpu_emulator {
namespace {

constexpr int kMaxDevices = 64;
// Larger blocks are mapped: untouched pages then cost nothing, and zeroing one is a system call.
constexpr size_t kMappedBytes = size_t{8} << 20;

struct Device {
  std::mutex mutex;
  MemoryStats stats;
  int64_t persistent = 0;  // tensors that outlived their graph, graphs
  int64_t open = 0;        // alive, allocated by the open graph
  int64_t open_peak = 0;
  uint64_t epoch = 1;  // of the open graph
  bool is_acquired = false;
};

std::array<Device, kMaxDevices> devices;
int num_devices = 1;
bool tracks_workspace = false;
thread_local c10::DeviceIndex current = 0;

struct Block {
  void* data;
  size_t bytes;
  bool is_mapped;
  c10::DeviceIndex device;
  uint64_t epoch;  // 0: of no graph
  c10::Storage host;
};

Device& device_at(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < num_devices, "HPU device index ", int(index),
              " is out of range: ", num_devices, " visible device(s)");
  return devices[index];
}

int64_t in_use(const Device& device) {
  return device.persistent + std::max(device.open, device.stats.workspace);
}

void note_usage(Device& device) {
  device.stats.in_use = in_use(device);
  device.stats.max_in_use = std::max(device.stats.max_in_use, device.stats.in_use);
}

void check_room(const Device& device, int64_t bytes) {
  const int64_t grows =
      tracks_workspace ? device.persistent + std::max(device.open + bytes, device.stats.workspace)
                       : in_use(device) + bytes;
  if (grows <= device.stats.limit) {
    return;
  }
  TORCH_CHECK(false, "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::", bytes,
              " (", bytes >> 20, ")MB");
}

// Accounts for a new block and says which graph it belongs to.
uint64_t take(c10::DeviceIndex index, int64_t bytes) {
  Device& device = device_at(index);
  if (!device.is_acquired) {
    device.is_acquired = true;
    try {
      notify_acquire(index);
    } catch (...) {
      device.is_acquired = false;
      throw;
    }
  }
  const std::lock_guard<std::mutex> lock(device.mutex);
  check_room(device, bytes);
  device.stats.num_allocs++;
  device.stats.active_allocs++;
  device.stats.max_alloc_size = std::max(device.stats.max_alloc_size, bytes);
  if (tracks_workspace) {
    device.open += bytes;
    device.open_peak = std::max(device.open_peak, device.open);
  } else {
    device.persistent += bytes;
  }
  note_usage(device);
  return tracks_workspace ? device.epoch : 0;
}

void give_back(const Block& block) {
  Device& device = devices[block.device];
  const std::lock_guard<std::mutex> lock(device.mutex);
  const auto bytes = static_cast<int64_t>(block.bytes);
  (block.epoch == device.epoch ? device.open : device.persistent) -= bytes;
  device.stats.num_frees++;
  device.stats.active_allocs--;
  note_usage(device);
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  give_back(*block);
  if (block->is_mapped) {
    munmap(block->data, block->bytes);
  } else if (!block->host) {
    std::free(block->data);
  }
  delete block;
}

Block* block_of(const c10::StorageImpl& storage) {
  const c10::DataPtr& data = storage.data_ptr();
  return data.get_deleter() == &release ? static_cast<Block*>(data.get_context()) : nullptr;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(kHpu, current);
    if (bytes == 0) {
      device_at(current);
      return {nullptr, nullptr, &c10::detail::deleteNothing, device};
    }
    const uint64_t epoch = take(current, static_cast<int64_t>(bytes));
    auto* block = new Block{nullptr, bytes, bytes >= kMappedBytes, current, epoch, {}};
    if (block->is_mapped) {
      block->data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      block->data = block->data == MAP_FAILED ? nullptr : block->data;
    } else if (posix_memalign(&block->data, 64, bytes) != 0) {
      block->data = nullptr;
    }
    if (block->data == nullptr) {
      give_back(*block);
      delete block;
      TORCH_CHECK(false, "the host has no ", bytes, " bytes to emulate device memory with");
    }
    return {block->data, block, &release, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }
};

Allocator the_allocator;
REGISTER_ALLOCATOR(kHpu, &the_allocator);

}  // namespace

c10::DeviceIndex device_count() { return static_cast<c10::DeviceIndex>(num_devices); }

void set_device_count(int count) {
  TORCH_CHECK(count >= 0 && count <= kMaxDevices, "at most ", kMaxDevices, " devices: ", count);
  num_devices = count;
}

c10::DeviceIndex current_device() { return current; }

void set_current_device(c10::DeviceIndex index) {
  device_at(index);
  current = index;
}

void forget_acquired_devices() {
  for (Device& device : devices) {
    device.is_acquired = false;
  }
}

MemoryStats memory_stats(c10::DeviceIndex index) {
  Device& device = device_at(index);
  const std::lock_guard<std::mutex> lock(device.mutex);
  return device.stats;
}

void set_memory_limit(c10::DeviceIndex index, int64_t bytes) {
  Device& device = device_at(index);
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.stats.limit = bytes;
}

void reset_peak_memory(c10::DeviceIndex index) {
  Device& device = device_at(index);
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.stats.max_in_use = device.stats.in_use;
}

void reset_accumulated_memory(c10::DeviceIndex index) {
  Device& device = device_at(index);
  const std::lock_guard<std::mutex> lock(device.mutex);
  device.stats.num_allocs = device.stats.active_allocs;
  device.stats.num_frees = 0;
  device.stats.max_alloc_size = 0;
}

void charge_graph_memory(c10::DeviceIndex index, int64_t bytes) {
  Device& device = device_at(index);
  const std::lock_guard<std::mutex> lock(device.mutex);
  if (bytes > 0) {
    check_room(device, bytes);
  }
  device.persistent += bytes;
  device.stats.graphs += bytes;
  note_usage(device);
}

int64_t close_workspace(c10::DeviceIndex index, bool counts) {
  Device& device = device_at(index);
  const std::lock_guard<std::mutex> lock(device.mutex);
  const int64_t workspace = counts ? device.open_peak - device.open : 0;
  device.persistent += device.open;
  device.open = 0;
  device.open_peak = 0;
  device.epoch++;
  device.stats.workspace = std::max(device.stats.workspace, workspace);
  note_usage(device);
  return workspace;
}

bool is_of_open_graph(const c10::StorageImpl& storage) {
  const Block* block = block_of(storage);
  return block != nullptr && block->epoch == devices[block->device].epoch;
}

void exclude_from_workspace(const c10::StorageImpl& storage) {
  Block* block = block_of(storage);
  if (block == nullptr) {
    return;
  }
  Device& device = devices[block->device];
  const std::lock_guard<std::mutex> lock(device.mutex);
  if (block->epoch == device.epoch) {
    const auto bytes = static_cast<int64_t>(block->bytes);
    device.open -= bytes;
    device.open_peak -= bytes;
    device.persistent += bytes;
    block->epoch = 0;
    note_usage(device);
  }
}

void set_workspace_tracking(bool enabled) { tracks_workspace = enabled; }

bool is_workspace_tracked() { return tracks_workspace; }

c10::Allocator* allocator() { return &the_allocator; }

c10::DataPtr adopt(c10::Storage host, c10::DeviceIndex index) {
  const size_t bytes = host.nbytes();
  void* data = host.mutable_data();
  const uint64_t epoch = take(index, static_cast<int64_t>(bytes));
  return {data, new Block{data, bytes, false, index, epoch, std::move(host)}, &release,
          c10::Device(kHpu, index)};
}

bool zero_untouched(const c10::StorageImpl& storage) {
  const Block* block = block_of(storage);
  return block != nullptr && block->is_mapped &&
         madvise(block->data, block->bytes, MADV_DONTNEED) == 0;
}

}  // namespace hpu_emulator
