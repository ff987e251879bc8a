#include "timeline.h"

#include <chrono>
#include <mutex>
#include <thread>

#include "observer.h"

namespace hpu_emulator {
namespace {

int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
}

class Latency final : public Observer {
 public:
  void set(double launch_us) { launch_us_ = launch_us; }

  void on_op(const c10::OperatorHandle&, c10::ArrayRef<c10::IValue>,
             c10::ArrayRef<c10::IValue>) override {}

  void on_launch(const Launch& launch) override {
    using namespace std::chrono;
    std::this_thread::sleep_for(duration<double, std::micro>(launch_us_));
  }

 private:
  double launch_us_ = 0;
};

class Timeline final : public Observer {
 public:
  void on_op(const c10::OperatorHandle&, c10::ArrayRef<c10::IValue>,
             c10::ArrayRef<c10::IValue>) override {
    start();
  }

  void on_launch(const Launch& launch) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t end = now_ns();
    const int64_t begin = begin_ns_ == 0 ? end : begin_ns_;
    events_.push_back({launch.recipe, launch.mode, launch.num_ops, launch.is_new, begin, end});
    begin_ns_ = 0;
  }

  void start() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (begin_ns_ == 0) {
      begin_ns_ = now_ns();
    }
  }

  std::vector<TimelineEvent> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    begin_ns_ = 0;
    return std::exchange(events_, {});
  }

 private:
  std::mutex mutex_;
  int64_t begin_ns_ = 0;
  std::vector<TimelineEvent> events_;
};

Latency latency;
Timeline timeline;
bool is_enabled = false;

}  // namespace

void set_launch_latency(double us) {
  remove_observer(&latency);
  latency.set(us);
  if (us > 0) {
    add_observer(&latency);
  }
}

void set_timeline_enabled(bool enabled) {
  if (enabled != is_enabled) {
    is_enabled = enabled;
    if (enabled) {
      timeline.take();
      add_observer(&timeline);
    } else {
      remove_observer(&timeline);
    }
  }
}

std::vector<TimelineEvent> take_timeline() { return timeline.take(); }

void note_start() {
  if (is_enabled) {
    timeline.start();
  }
}

}  // namespace hpu_emulator
