#include "fallback.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <atomic>

#include "alias.h"
#include "handlers.h"
#include "indexing.h"
#include "memory.h"
#include "observer.h"
#include "placeholder.h"
#include "random.h"
#include "recipes.h"
#include "transfer.h"

namespace hpu_emulator {
namespace {

FallbackSettings settings;
std::atomic<int64_t> fallbacks{0};

using Stack = torch::jit::Stack;

// Folds the devices of tensors into one, or says which two do not go together.
class DeviceCheck {
 public:
  explicit DeviceCheck(const OpInfo& info) : info_(info) {}

  void value(const c10::IValue& value, bool tolerates_host) {
    if (value.isTensor()) {
      tensor(value.toTensor(), tolerates_host);
    } else if (value.isTensorList() || value.isOptionalTensorList()) {
      for (const c10::IValue& item : value.toListRef()) {
        this->value(item, info_.accepts_host_indices);
      }
    } else if (value.isDevice() && value.toDevice().type() == kHpu && !device_) {
      const c10::DeviceIndex index = value.toDevice().index();
      device_ = c10::Device(kHpu, index < 0 ? current_device() : index);
    }
  }

  c10::DeviceIndex finish() const {
    if (device_ && host_) {
      mismatch(*device_, *host_);
    }
    return device_ ? device_->index() : current_device();
  }

 private:
  void tensor(const at::Tensor& tensor, bool tolerates_host) {
    if (!tensor.defined()) {
      return;
    }
    const c10::Device device = tensor.device();
    if (device.type() == kHpu) {
      if (device_ && *device_ != device) {
        mismatch(*device_, device);
      }
      device_ = device;
    } else if (tensor.dim() > 0 && !tolerates_host) {
      host_ = device;
    }
  }

  void mismatch(c10::Device first, c10::Device second) const {
    TORCH_CHECK(false,
                "Expected all tensors to be on the same device, but found at least two devices, ",
                first, " and ", second, "! (while running ", info_.name, ")");
  }

  const OpInfo& info_;
  std::optional<c10::Device> device_;
  std::optional<c10::Device> host_;
};

void set_generator(const OpInfo& info, c10::ArrayRef<c10::IValue> given, c10::IValue& argument,
                   c10::DeviceIndex device) {
  if (given[info.generator].isNone()) {
    argument = generator_of(device);
    return;
  }
  TORCH_CHECK(false, "Expected a 'hpu' device type for generator but found '",
              given[info.generator].toGenerator().device().type(), "'");
}

bool has_complex(c10::ArrayRef<c10::IValue> arguments) {
  for (const c10::IValue& value : arguments) {
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_complex()) {
      return true;
    }
  }
  return false;
}

bool runs_on_host(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments) {
  return !info.is_view && !info.is_allocation &&
         (info.is_linear_algebra || is_placed_on_cpu(info) || has_complex(arguments));
}

void fall_back(const c10::OperatorHandle& op, const OpInfo& info) {
  TORCH_CHECK(
      is_fallback_allowed(), info.name,
      " is not supported on HPU, and PT_HPU_PLACE_ON_CPU=none forbids to run it on the CPU");
  ++fallbacks;
  report_fallback(op);
  notify_fallback(info.name);
  host_read("cpu_fallback", info.name, 0);
}

template <typename Wide, typename Narrow>
void round_trip(const at::Tensor& tensor, at::ScalarType narrow) {
  if (!tensor.is_contiguous()) {
    tensor.copy_(tensor.to(narrow).to(tensor.scalar_type()));
    return;
  }
  Wide* values = tensor.mutable_data_ptr<Wide>();
  const int64_t n = tensor.numel();
  for (int64_t i = 0; i < n; ++i) {
    values[i] = static_cast<Wide>(static_cast<Narrow>(values[i]));
  }
}

void narrow_all(const OpInfo& info, const Stack& host_arguments,
                c10::ArrayRef<c10::IValue> results) {
  for (size_t i = 0; i < info.written.size(); ++i) {
    if (info.written[i] && host_arguments[i].isTensor()) {
      narrow(info, host_arguments[i].toTensor());
    }
  }
  for (const c10::IValue& result : results) {
    if (result.isTensor()) {
      narrow(info, result.toTensor());
    }
  }
}

void run_on_host(const c10::OperatorHandle& op, const OpInfo& info, Stack* host) {
  constexpr auto kCpu = c10::DispatchKey::CPU;
  if (info.name == "aten::convolution_overrideable") {
    static const auto convolution =
        c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
    convolution.redispatchBoxed(c10::DispatchKeySet(kCpu), host);
    return;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(op.hasComputedKernelForDispatchKey(kCpu), info.name,
                              " is not implemented for the HPU");
  op.redispatchBoxed(c10::DispatchKeySet(kCpu), host);
}

}  // namespace

c10::DeviceIndex check_devices(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments) {
  DeviceCheck check(info);
  for (const c10::IValue& argument : arguments) {
    check.value(argument, false);
  }
  return check.finish();
}

FallbackSettings& fallback_settings() { return settings; }

int64_t num_fallbacks() { return fallbacks; }

void narrow(const OpInfo& info, const at::Tensor& host) {
  if (!host.defined() || host.numel() == 0) {
    return;
  }
  if (settings.narrow_int64 && host.scalar_type() == at::kLong) {
    round_trip<int64_t, int32_t>(host, at::kInt);
  } else if (settings.narrow_float64 && host.scalar_type() == at::kDouble) {
    round_trip<double, float>(host, at::kFloat);
  }
}

void execute(const c10::OperatorHandle& op, Stack* stack) {
  const OpInfo& info = info_of(op);
  const size_t num_arguments = info.arguments.size();
  const auto given = torch::jit::last(*stack, num_arguments);
  const c10::DeviceIndex device = check_devices(info, given);
  Aliases aliases(device);
  Stack host;
  host.reserve(num_arguments + 2);
  for (const c10::IValue& argument : given) {
    host.push_back(aliases.to_host(argument));
  }
  if (info.generator >= 0) {
    set_generator(info, given, host[info.generator], device);
  }
  if (info.is_gelu && settings.tanh_gelu) {
    host[1] = c10::IValue("tanh");
  }
  const bool narrows =
      (settings.narrow_int64 || settings.narrow_float64) && !info.is_view && !info.is_allocation;
  const Stack writable = narrows ? host : Stack();
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (info.indexing == Indexing::kNone || !run_tolerantly(info, op, &host)) {
      run_on_host(op, info, &host);
    }
    if (narrows) {
      narrow_all(info, writable, host);
    }
  }
  torch::jit::drop(*stack, num_arguments);
  for (const c10::IValue& result : host) {
    stack->push_back(aliases.to_device(result));
  }
  aliases.sync_arguments();
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  const OpInfo& info = info_of(op);
  if (info.is_view || info.is_allocation) {
    execute(op, stack);
    return;
  }
  const size_t num_arguments = info.arguments.size();
  const size_t bottom = stack->size() - num_arguments;
  if (info.reads_host) {
    host_read("item", info.name, 1);
    execute(op, stack);
    return;
  }
  const Stack arguments(stack->begin() + static_cast<int64_t>(bottom), stack->end());
  const bool on_host = runs_on_host(info, arguments);
  if (on_host) {
    fall_back(op, info);
    execute(op, stack);
    return;
  }
  if (!recipe_settings().compile_only || !make_placeholders(op, info, stack)) {
    execute(op, stack);
  }
  const c10::ArrayRef<c10::IValue> results(stack->data() + bottom, stack->size() - bottom);
  report_op(op, arguments, results);
  record(info, arguments, results);
  if (info.waits) {
    host_read("data-dependent shape", info.name, 0);
  }
}

}  // namespace hpu_emulator

TORCH_LIBRARY_IMPL(_, HPU, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&hpu_emulator::fallback>());
}

TORCH_LIBRARY_IMPL(aten, HPU, library) {
  // Its default kernel refuses, which would come before the fallback.
  library.impl("convolution_overrideable",
               torch::CppFunction::makeFromBoxedFunction<&hpu_emulator::fallback>());
}
