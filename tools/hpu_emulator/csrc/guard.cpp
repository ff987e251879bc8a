// The HPU as torch's generic code sees it: current device, streams, events, hooks.
#include <ATen/detail/HPUHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"
#include "random.h"
#include "transfer.h"

namespace hpu_emulator {
namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kHpu; }

  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }

  c10::Device getDevice() const override { return {kHpu, current_device()}; }

  void setDevice(c10::Device device) const override {
    if (device.has_index()) {
      set_current_device(device.index());
    }
  }

  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index() && device.index() < device_count()) {
      set_current_device(device.index());
    }
  }

  c10::Stream getStream(c10::Device device) const override {
    return current_stream(device.index());
  }

  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT,
                       c10::Device(kHpu, device.has_index() ? device.index() : 0));
  }

  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return new_stream(device.index());
  }

  c10::Stream getNewStream(c10::Device device, int) const override {
    return new_stream(device.index());
  }

  c10::Stream exchangeStream(c10::Stream stream) const override { return exchange_stream(stream); }

  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    destroyEvent(*event, 0);
    *event = new EventState(record_event(stream));
  }

  void block(void*, const c10::Stream&) const override {}

  bool queryEvent(void* event) const override {
    if (event != nullptr) {
      finish_event(*static_cast<EventState*>(event), false);
    }
    return true;
  }

  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<EventState*>(event);
  }

  void synchronizeEvent(void* event) const override {
    if (event != nullptr) {
      finish_event(*static_cast<EventState*>(event), true);
    }
  }

  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(first != nullptr && second != nullptr,
                "both events must be recorded before elapsed_time()");
    return static_cast<EventState*>(second)->time_ms - static_cast<EventState*>(first)->time_ms;
  }

  bool queryStream(const c10::Stream& stream) const override {
    finish_stream(stream, false);
    return true;
  }

  void synchronizeStream(const c10::Stream& stream) const override { finish_stream(stream, true); }

  void synchronizeDevice(const c10::DeviceIndex) const override { finish_device(true); }
};

C10_REGISTER_GUARD_IMPL(HPU, Guard);

// torch looks the hooks up by this name.
struct HPUHooks final : at::HPUHooksInterface {
  explicit HPUHooks(at::HPUHooksArgs) {}

  bool hasHPU() const override { return device_count() > 0; }

  void init() const override {}

  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }

  bool isBuilt() const override { return true; }

  bool isAvailable() const override { return device_count() > 0; }

  c10::DeviceIndex deviceCount() const override { return device_count(); }

  void setCurrentDevice(c10::DeviceIndex device) const override { set_current_device(device); }

  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }

  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    const c10::DeviceIndex before = current_device();
    set_current_device(device);
    return before;
  }

  // There is no useful pinned memory: what asks for it gets ordinary memory.
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }

  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    TORCH_CHECK(false, "Device type HPU is not supported for torch.Generator() api.");
  }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return generator_of(device < 0 ? current_device() : device);
  }

  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? current_device() : exchangeDevice(device);
  }
};

using at::HPUHooksArgs;
using at::HPUHooksInterface;
using at::HPUHooksRegistry;
using at::RegistererHPUHooksRegistry;
REGISTER_HPU_HOOKS(HPUHooks);

}  // namespace
}  // namespace hpu_emulator
