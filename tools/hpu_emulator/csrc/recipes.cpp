#include "recipes.h"

#include <c10/util/intrusive_ptr.h>

#include <cstring>
#include <mutex>
#include <unordered_map>

#include "handlers.h"
#include "memory.h"
#include "observer.h"

namespace hpu_emulator {
namespace {

struct Key {
  uint64_t high, low;
  bool operator==(const Key& other) const { return high == other.high && low == other.low; }
};

struct KeyHash {
  size_t operator()(const Key& key) const { return key.high ^ key.low; }
};

struct Recipe {
  int64_t number;
  int64_t launches;
};

using Words = std::vector<int64_t>;
using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

struct Place {
  WeakStorage storage;
  bool is_written;  // by an op of the graph: a result, if it is alive at the end
};

struct Constant {
  WeakStorage storage;
  uint64_t value;
};

struct Graph {
  Words words;
  int64_t num_ops = 0;
  c10::DeviceIndex device = 0;
  std::unordered_map<const c10::StorageImpl*, int64_t> places;
  // Weak references keep addresses from being used again while the graph grows.
  std::vector<Place> storages;
};

std::mutex mutex;
RecipeSettings settings;
RecipeCounts counts;
Graph graph;
int64_t last = -1;
int64_t next_number = 0;
thread_local int region_depth = 0;

auto& recipes() {
  static auto& table = *new std::unordered_map<Key, Recipe, KeyHash>();
  return table;
}

auto& constants() {
  static auto& table = *new std::unordered_map<const c10::StorageImpl*, Constant>();
  return table;
}

uint64_t mix(uint64_t hash, uint64_t word, uint64_t factor) {
  hash ^= word * factor;
  hash = (hash << 29) | (hash >> 35);
  return hash * 0x9E3779B97F4A7C15ULL + 0x165667B19E3779F9ULL;
}

Key key_of(const char* mode, const Words& words) {
  Key key{static_cast<uint64_t>(mode[0]), static_cast<uint64_t>(mode[0]) + 1};
  for (const int64_t word : words) {
    key.high = mix(key.high, static_cast<uint64_t>(word), 0xC2B2AE3D27D4EB4FULL);
    key.low = mix(key.low, static_cast<uint64_t>(word), 0x85EBCA77C2B2AE63ULL);
  }
  return key;
}

uint64_t value_of(const at::Tensor& tensor) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.storage().data());
  uint64_t hash = 0;
  for (size_t i = 0; i < tensor.storage().nbytes(); ++i) {
    hash = (hash ^ bytes[i]) * 1099511628211ULL;
  }
  return hash | 1;
}

int64_t constant_of(const c10::StorageImpl* storage) {
  if (constants().empty()) {
    return 0;
  }
  const auto found = constants().find(storage);
  const bool is_alive = found != constants().end() && found->second.storage.use_count() > 0;
  return is_alive ? static_cast<int64_t>(found->second.value) : 0;
}

// Appends the words of one op.
class Encoder {
 public:
  Encoder(Words& words, Graph* graph) : words_(words), graph_(graph) {}

  void op(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments,
          c10::ArrayRef<c10::IValue> results) {
    add(kOp, static_cast<int64_t>(info.id), static_cast<int64_t>(arguments.size()));
    for (size_t i = 0; i < arguments.size(); ++i) {
      const Argument kind = i < info.arguments.size() ? info.arguments[i] : Argument::kValue;
      writes_ = i < info.written.size() && info.written[i];
      if (kind == Argument::kIgnored) {
        add(kNone);
      } else if (kind == Argument::kNumber && !arguments[i].isNone()) {
        add(kNumber, arguments[i].isDouble() ? 1 : arguments[i].isBool() ? 2 : 0);
      } else {
        value(arguments[i]);
      }
    }
    add(kResults, static_cast<int64_t>(results.size()));
    writes_ = true;
    for (const c10::IValue& result : results) {
      value(result);
    }
  }

 private:
  template <typename... Ints>
  void add(Ints... values) {
    (words_.push_back(values), ...);
  }

  void value(const c10::IValue& value) {
    if (value.isTensor()) {
      tensor(value.toTensor());
    } else if (value.isInt()) {
      add(kInt, value.toInt());
    } else if (value.isBool()) {
      add(kBool, static_cast<int64_t>(value.toBool()));
    } else if (value.isDouble()) {
      int64_t bits = 0;
      const double number = value.toDouble();
      std::memcpy(&bits, &number, sizeof(bits));
      add(kFloat, bits);
    } else if (value.isIntList()) {
      const auto ints = value.toIntVector();
      add(kInts, static_cast<int64_t>(ints.size()));
      words_.insert(words_.end(), ints.begin(), ints.end());
    } else if (value.isString()) {
      add(kText, static_cast<int64_t>(intern(value.toStringRef())));
    } else if (value.isList()) {
      const auto items = value.toListRef();
      add(kList, static_cast<int64_t>(items.size()));
      for (const c10::IValue& item : items) {
        this->value(item);
      }
    } else {
      add(value.isNone() ? kNone : kOther);
    }
  }

  void tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) {
      add(kNone);
      return;
    }
    const auto dtype = static_cast<int64_t>(tensor.scalar_type());
    if (tensor.device().type() != kHpu) {
      add(kHostScalar, dtype);
    } else if (graph_ == nullptr) {
      add(kRank, dtype, tensor.dim());
    } else {
      full_tensor(tensor, dtype);
    }
  }

  void full_tensor(const at::Tensor& tensor, int64_t dtype) {
    c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
    const auto bytes = static_cast<int64_t>(storage->nbytes());
    const bool is_whole = tensor.storage_offset() == 0 &&
                          tensor.numel() * static_cast<int64_t>(tensor.itemsize()) == bytes;
    add(kTensor, place(tensor, storage), dtype, constant_of(storage), is_whole ? 0 : bytes,
        tensor.storage_offset(), tensor.dim());
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    words_.insert(words_.end(), sizes.begin(), sizes.end());
    words_.insert(words_.end(), strides.begin(), strides.end());
  }

  int64_t place(const at::Tensor& tensor, c10::StorageImpl* storage) {
    const auto next = static_cast<int64_t>(graph_->storages.size());
    const auto [found, is_new] = graph_->places.emplace(storage, next);
    if (is_new) {
      graph_->storages.push_back({tensor.storage().getWeakStorageImpl(), false});
    }
    graph_->storages[found->second].is_written |= writes_;
    return found->second;
  }

  Words& words_;
  Graph* graph_;
  bool writes_ = false;
};

// Counts a launch of the recipe with this key, and its compilation if it is not known.
void launch(const char* mode, Words&& words, int64_t num_ops, int64_t workspace) {
  const Key key = key_of(mode, words);
  Launch event{-1, mode, num_ops, false};
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [found, is_new] = recipes().emplace(key, Recipe{next_number, 0});
    next_number += is_new;
    last = found->second.number;
    if (!settings.compile_only) {
      found->second.launches++;
      counts.launches++;
    }
    event.recipe = last;
    event.is_new = is_new;
    counts.compilations += is_new;
  }
  if (!event.is_new) {
    report_launch(event);
    return;
  }
  try {
    notify_compilation({last, mode, key.high, key.low, std::move(words), num_ops, workspace});
  } catch (...) {
    // A refused recipe stays unknown, so that it is refused again.
    const std::lock_guard<std::mutex> lock(mutex);
    recipes().erase(key);
    throw;
  }
  report_launch(event);
}

void record_eager(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments,
                  c10::ArrayRef<c10::IValue> results) {
  thread_local Words words;
  words.clear();
  Encoder(words, nullptr).op(info, arguments, results);
  launch("eager", Words(words), 1, 0);
}

}  // namespace

RecipeSettings& recipe_settings() { return settings; }

RecipeCounts recipe_counts() {
  const std::lock_guard<std::mutex> lock(mutex);
  return counts;
}

void reset_recipes() {
  const std::lock_guard<std::mutex> lock(mutex);
  recipes().clear();
  counts = {};
}

int64_t num_recipes() {
  const std::lock_guard<std::mutex> lock(mutex);
  return static_cast<int64_t>(recipes().size());
}

void record(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments,
            c10::ArrayRef<c10::IValue> results) {
  if (region_depth > 0) {
    counts.ops++;
    return;
  }
  if (!settings.lazy) {
    counts.ops++;
    record_eager(info, arguments, results);
    return;
  }
  bool is_full = false;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    counts.ops++;
    Encoder(graph.words, &graph).op(info, arguments, results);
    graph.device = current_device();
    is_full = ++graph.num_ops >= settings.max_ops;
  }
  if (is_full) {
    flush();
  }
}

int64_t num_pending_ops() {
  const std::lock_guard<std::mutex> lock(mutex);
  return graph.num_ops;
}

void flush() {
  Words words;
  int64_t num_ops = 0;
  int64_t workspace = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (graph.num_ops == 0) {
      if (settings.lazy) {
        close_workspace(current_device(), /*counts=*/false);
      }
      return;
    }
    graph.words.push_back(kAlive);
    graph.words.push_back(static_cast<int64_t>(graph.storages.size()));
    for (const Place& place : graph.storages) {
      graph.words.push_back(place.is_written && place.storage.use_count() > 0);
    }
    words = graph.words;
    num_ops = graph.num_ops;
    graph.words.clear();
    graph.places.clear();
    graph.storages.clear();
    graph.num_ops = 0;
    workspace = close_workspace(graph.device);
  }
  launch("lazy", std::move(words), num_ops, workspace);
}

void begin_region() {
  TORCH_CHECK(region_depth == 0, "a compiled region cannot begin inside another");
  TORCH_CHECK(!settings.lazy, "there are no compiled regions in lazy mode");
  region_depth++;
  set_workspace_tracking(true);
  close_workspace(current_device());
}

void abandon_region() {
  if (region_depth > 0) {
    region_depth--;
    close_workspace(current_device());
    set_workspace_tracking(false);
  }
}

void end_region(const std::string& key, int64_t num_ops) {
  TORCH_CHECK(region_depth == 1, "no compiled region is open");
  region_depth--;
  const int64_t workspace = close_workspace(current_device());
  set_workspace_tracking(false);
  launch("compile", {kText, static_cast<int64_t>(intern(key))}, num_ops, workspace);
}

void count_launch(int64_t recipe) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    counts.launches += recipe >= 0;
  }
  report_launch({recipe, "replay", 0, false});
}

int64_t last_recipe() { return last; }

void mark_constant(const at::Tensor& tensor) {
  const std::lock_guard<std::mutex> lock(mutex);
  constants().insert_or_assign(tensor.storage().unsafeGetStorageImpl(),
                               Constant{tensor.storage().getWeakStorageImpl(), value_of(tensor)});
}

void unmark_constants() {
  const std::lock_guard<std::mutex> lock(mutex);
  constants().clear();
}

}  // namespace hpu_emulator
