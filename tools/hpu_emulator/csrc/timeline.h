// When recipes ran, for profilers, and how long each takes, for comparisons of policies.
#pragma once

#include <cstdint>
#include <vector>

namespace hpu_emulator {

struct TimelineEvent {
  int64_t recipe = 0;
  const char* mode = "";  // lazy, eager, compile, replay
  int64_t num_ops = 0;
  bool is_new = false;
  int64_t begin_ns = 0;  // of the clock of epoch time
  int64_t end_ns = 0;
};

// Every launch takes so much longer.
void set_launch_latency(double us);
void set_timeline_enabled(bool enabled);
// The events since the last call.
std::vector<TimelineEvent> take_timeline();
// The device begins something that is launched later.
void note_start();

}  // namespace hpu_emulator
