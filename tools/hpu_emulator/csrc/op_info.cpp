#include "op_info.h"

#include <c10/util/StringUtil.h>

#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <unordered_map>

namespace hpu_emulator {
namespace {

const std::set<std::string> kWaiting = {"aten::_local_scalar_dense",
                                        "aten::_unique",
                                        "aten::_unique2",
                                        "aten::bincount",
                                        "aten::equal",
                                        "aten::masked_select",
                                        "aten::nonzero",
                                        "aten::unique_consecutive",
                                        "aten::unique_dim",
                                        "aten::unique_dim_consecutive"};
const std::set<std::string> kAllocating = {
    "aten::empty",     "aten::empty_strided",     "aten::empty_like",
    "aten::new_empty", "aten::new_empty_strided", "aten::resize_",
    "aten::set_"};
const std::set<std::string> kTakingHostIndices = {"aten::index",         "aten::index_put",
                                                  "aten::index_put_",    "aten::_index_put_impl_",
                                                  "aten::_unsafe_index", "aten::_unsafe_index_put"};
const std::unordered_map<std::string, Indexing> kIndexing = {
    {"aten::index_select", Indexing::kSelect},     {"aten::embedding", Indexing::kSelect},
    {"aten::gather", Indexing::kGather},           {"aten::index", Indexing::kIndex},
    {"aten::_unsafe_index", Indexing::kIndex},     {"aten::index_put", Indexing::kIndexPut},
    {"aten::index_put_", Indexing::kIndexPut},     {"aten::_index_put_impl_", Indexing::kIndexPut},
    {"aten::index_copy", Indexing::kWriteRows},    {"aten::index_copy_", Indexing::kWriteRows},
    {"aten::index_add", Indexing::kWriteRows},     {"aten::index_add_", Indexing::kWriteRows},
    {"aten::index_reduce", Indexing::kWriteRows},  {"aten::index_reduce_", Indexing::kWriteRows},
    {"aten::index_fill_", Indexing::kWriteRows},   {"aten::scatter", Indexing::kScatter},
    {"aten::scatter_", Indexing::kScatter},        {"aten::scatter_add", Indexing::kScatter},
    {"aten::scatter_add_", Indexing::kScatter},    {"aten::scatter_reduce", Indexing::kScatter},
    {"aten::scatter_reduce_", Indexing::kScatter},
};

std::mutex mutex;
std::set<std::string> placed_on_cpu;
bool fallback_allowed = true;

auto& texts() {
  static auto& table = *new std::unordered_map<uint64_t, std::string>();
  return table;
}

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

bool is_number(const c10::TypePtr& type) {
  if (type->kind() == c10::TypeKind::OptionalType) {
    return is_number(type->expectRef<c10::OptionalType>().getElementType());
  }
  return type->kind() == c10::TypeKind::NumberType;
}

bool is_generator(const c10::TypePtr& type) {
  if (type->kind() == c10::TypeKind::OptionalType) {
    return is_generator(type->expectRef<c10::OptionalType>().getElementType());
  }
  return type->kind() == c10::TypeKind::GeneratorType;
}

// Every result is an alias of an argument that the op does not write to.
bool returns_views(const c10::FunctionSchema& schema) {
  for (const c10::Argument& result : schema.returns()) {
    if (result.alias_info() == nullptr || result.alias_info()->isWrite()) {
      return false;
    }
  }
  return !schema.returns().empty();
}

std::unique_ptr<OpInfo> make_info(const c10::FunctionSchema& schema) {
  auto info = std::make_unique<OpInfo>();
  const std::string& name = schema.name();
  info->name = schema.overload_name().empty() ? name : name + "." + schema.overload_name();
  info->id = intern(info->name);
  for (const c10::Argument& argument : schema.arguments()) {
    if (is_generator(argument.type())) {
      info->generator = static_cast<int>(info->arguments.size());
    }
    const bool ignored = is_generator(argument.type());
    info->arguments.push_back(ignored                      ? Argument::kIgnored
                              : is_number(argument.type()) ? Argument::kNumber
                                                           : Argument::kValue);
    info->written.push_back(argument.alias_info() != nullptr && argument.alias_info()->isWrite());
  }
  info->is_view = returns_views(schema);
  info->is_allocation = kAllocating.count(name) > 0;
  info->waits = kWaiting.count(name) > 0 || info->name == "aten::repeat_interleave.Tensor";
  info->reads_host = name == "aten::_local_scalar_dense";
  info->is_linear_algebra = starts_with(name, "aten::linalg_") ||
                            starts_with(name, "aten::_linalg_") || starts_with(name, "aten::_fft_");
  info->accepts_host_indices = kTakingHostIndices.count(name) > 0;
  info->is_gelu = name == "aten::gelu" || name == "aten::gelu_";
  const auto indexing = kIndexing.find(name);
  info->indexing = indexing == kIndexing.end() ? Indexing::kNone : indexing->second;
  return info;
}

}  // namespace

uint64_t intern(const std::string& text) {
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  texts().emplace(hash, text);
  return hash;
}

std::string text_of(uint64_t hash) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = texts().find(hash);
  return found == texts().end() ? "?" : found->second;
}

// Per thread, so that looking up needs no lock; schemas live as long as their operators.
const OpInfo& info_of(const c10::OperatorHandle& op) {
  thread_local std::unordered_map<const c10::FunctionSchema*, std::unique_ptr<OpInfo>> known;
  const c10::FunctionSchema& schema = op.schema();
  std::unique_ptr<OpInfo>& info = known[&schema];
  if (info == nullptr || info->arguments.size() != schema.arguments().size()) {
    info = make_info(schema);
  }
  return *info;
}

void set_place_on_cpu(const std::string& value) {
  const std::lock_guard<std::mutex> lock(mutex);
  placed_on_cpu.clear();
  fallback_allowed = value != "none";
  std::stringstream names(value == "none" ? "" : value);
  for (std::string name; std::getline(names, name, ',');) {
    placed_on_cpu.insert(name.find("::") == std::string::npos ? "aten::" + name : name);
  }
}

bool is_placed_on_cpu(const OpInfo& info) {
  return !placed_on_cpu.empty() &&
         placed_on_cpu.count(info.name.substr(0, info.name.find('.'))) > 0;
}

bool is_fallback_allowed() { return fallback_allowed; }

}  // namespace hpu_emulator
