#include "indexing.h"

#include <ATen/Functions.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "fallback.h"
#include "handlers.h"

namespace hpu_emulator {
namespace {

using Stack = torch::jit::Stack;

// Index of an argument by its name, or -1.
int argument_named(const c10::OperatorHandle& op, const char* name) {
  const auto index = op.schema().argumentIndexWithName(name);
  return index ? *index : -1;
}

// First value outside of [0, size), or -1 wrapped where that is enabled; nullopt if there is none.
template <typename Int>
std::optional<int64_t> first_outside(const at::Tensor& index, int64_t low, int64_t size) {
  const at::Tensor flat = index.contiguous();
  const Int* values = flat.const_data_ptr<Int>();
  for (int64_t i = 0; i < flat.numel(); ++i) {
    if (values[i] < low || values[i] >= size) {
      return values[i];
    }
  }
  return std::nullopt;
}

bool is_outside(const OpInfo& info, const at::Tensor& index, int64_t size, int64_t low) {
  std::optional<int64_t> found;
  if (index.scalar_type() == at::kLong) {
    found = first_outside<int64_t>(index, low, size);
  } else if (index.scalar_type() == at::kInt) {
    found = first_outside<int32_t>(index, low, size);
  }
  if (found) {
    notify_bad_index(info.name, *found, size);
  }
  return found.has_value();
}

at::Tensor valid_of(const at::Tensor& index, int64_t size, int64_t low) {
  return index.ge(low).logical_and_(index.lt(size));
}

void call(const c10::OperatorHandle& op, Stack* stack) {
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

int64_t size_at(const at::Tensor& tensor, int64_t dim) {
  return tensor.dim() == 0 ? 1 : tensor.size(dim);
}

// Shape that broadcasts a vector along `dim` of a tensor of this rank.
std::vector<int64_t> along(int64_t rank, int64_t dim, int64_t size) {
  std::vector<int64_t> shape(rank, 1);
  if (rank > 0) {
    shape[dim < 0 ? dim + rank : dim] = size;
  }
  return shape;
}

// index_select, embedding: rows of invalid indices are zero.
bool select_rows(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  const bool is_embedding = info.name.rfind("aten::embedding", 0) == 0;
  const int at = argument_named(op, is_embedding ? "indices" : "index");
  const at::Tensor table = (*stack)[0].toTensor();
  const at::Tensor index = (*stack)[at].toTensor();
  const int64_t dim = is_embedding ? 0 : (*stack)[1].toInt();
  const int64_t size = size_at(table, dim);
  if (!is_outside(info, index, size, 0)) {
    return false;
  }
  const at::Tensor valid = valid_of(index, size, 0);
  if (size == 0) {
    return false;
  }
  (*stack)[at] = index.mul(valid);
  call(op, stack);
  at::Tensor out = stack->back().toTensor();
  const at::Tensor invalid = valid.logical_not();
  if (is_embedding) {
    out.masked_fill_(invalid.unsqueeze(-1), 0);
  } else {
    out.masked_fill_(invalid.view(along(out.dim(), dim, index.numel())), 0);
  }
  return true;
}

bool gather(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  const at::Tensor table = (*stack)[0].toTensor();
  const at::Tensor index = (*stack)[2].toTensor();
  const int64_t size = size_at(table, (*stack)[1].toInt());
  if (size == 0 || !is_outside(info, index, size, 0)) {
    return false;
  }
  const at::Tensor valid = valid_of(index, size, 0);
  (*stack)[2] = index.mul(valid);
  call(op, stack);
  at::Tensor out = stack->back().toTensor();
  out.masked_fill_(valid.logical_not(), 0);
  return true;
}

// index_copy, index_add, index_reduce, index_fill: rows of invalid indices are not written.
bool write_rows(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  const at::Tensor table = (*stack)[0].toTensor();
  const int64_t dim = (*stack)[1].toInt();
  const at::Tensor index = (*stack)[2].toTensor();
  const int64_t size = size_at(table, dim);
  if (!is_outside(info, index, size, 0)) {
    return false;
  }
  const at::Tensor kept = valid_of(index, size, 0).reshape({-1}).nonzero().squeeze(-1);
  (*stack)[2] = index.reshape({-1}).index_select(0, kept);
  if ((*stack)[3].isTensor() && (*stack)[3].toTensor().dim() > 0) {
    (*stack)[3] = (*stack)[3].toTensor().index_select(dim, kept);
  }
  call(op, stack);
  return true;
}

// scatter: elements of invalid indices write back what is there.
bool scatter(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  const at::Tensor table = (*stack)[0].toTensor();
  const int64_t dim = (*stack)[1].toInt();
  const at::Tensor index = (*stack)[2].toTensor();
  const int64_t size = size_at(table, dim);
  if (!is_outside(info, index, size, 0)) {
    return false;
  }
  // One more row takes what is written outside, and is cut off again.
  const at::Tensor valid = valid_of(index, size, 0);
  std::vector<int64_t> shape = table.sizes().vec();
  shape[dim < 0 ? dim + table.dim() : dim] = 1;
  const at::Tensor longer = at::cat({table, at::zeros(shape, table.options())}, dim);
  const int out = argument_named(op, "out");
  const bool in_place = info.name.find("_.") != std::string::npos || info.name.back() == '_';
  Stack redirected = *stack;
  redirected[0] = longer;
  redirected[2] = at::where(valid, index, at::scalar_tensor(size, index.options()));
  if (out >= 0) {
    redirected[out] = at::empty_like(longer);
  }
  call(op, &redirected);
  const at::Tensor result = redirected.back().toTensor().narrow(dim, 0, size);
  at::Tensor target = out >= 0 ? (*stack)[out].toTensor() : in_place ? table : result.contiguous();
  if (out >= 0 || in_place) {
    target.copy_(result);
  }
  *stack = {target};
  return true;
}

struct Indices {
  c10::List<std::optional<at::Tensor>> safe;
  at::Tensor valid;  // broadcast shape of the indices; undefined: all are valid
};

// Indices of index and index_put with what is outside replaced by zero.
Indices check(const OpInfo& info, const at::Tensor& table, const c10::IValue& given) {
  Indices out;
  const bool wraps = fallback_settings().negative_indices;
  int64_t dim = 0;
  for (const std::optional<at::Tensor>& index : given.toOptionalTensorVector()) {
    const bool is_mask =
        index && (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte);
    if (!index || !index->defined() || is_mask) {
      out.safe.push_back(index);
      dim += is_mask ? index->dim() : 1;
      continue;
    }
    const int64_t size = size_at(table, dim++);
    const int64_t low = wraps ? -size : 0;
    if (!is_outside(info, *index, size, low)) {
      out.safe.push_back(index);
      continue;
    }
    const at::Tensor valid = valid_of(*index, size, low);
    out.safe.push_back(index->mul(valid));
    out.valid = out.valid.defined() ? out.valid.logical_and(valid) : valid;
  }
  return out;
}

// Where the dimensions of the indices are in the result of table[indices].
int64_t position_of(const c10::List<std::optional<at::Tensor>>& indices) {
  int64_t first = -1;
  int64_t last = -1;
  bool adjacent = true;
  for (size_t i = 0; i < indices.size(); ++i) {
    const std::optional<at::Tensor> index = indices.get(i);
    if (index && index->defined()) {
      adjacent = adjacent && (first < 0 || last == static_cast<int64_t>(i) - 1);
      first = first < 0 ? static_cast<int64_t>(i) : first;
      last = static_cast<int64_t>(i);
    }
  }
  return adjacent ? first : 0;
}

int64_t broadcast_rank(const c10::List<std::optional<at::Tensor>>& indices) {
  int64_t rank = 0;
  for (size_t i = 0; i < indices.size(); ++i) {
    const std::optional<at::Tensor> index = indices.get(i);
    rank = index && index->defined() ? std::max(rank, index->dim()) : rank;
  }
  return rank;
}

// The mask with trailing dimensions, so that it broadcasts over table[indices].
at::Tensor mask_for(const at::Tensor& result, const Indices& indices) {
  const int64_t after = result.dim() - position_of(indices.safe) - broadcast_rank(indices.safe);
  std::vector<int64_t> shape = indices.valid.sizes().vec();
  shape.insert(shape.end(), after, 1);
  return indices.valid.view(shape);
}

bool index(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  const at::Tensor table = (*stack)[0].toTensor();
  const Indices indices = check(info, table, (*stack)[1]);
  if (!indices.valid.defined()) {
    return false;
  }
  (*stack)[1] = indices.safe;
  call(op, stack);
  at::Tensor out = stack->back().toTensor();
  out.masked_fill_(mask_for(out, indices).logical_not(), 0);
  return true;
}

bool index_put(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  const at::Tensor table = (*stack)[0].toTensor();
  const Indices indices = check(info, table, (*stack)[1]);
  if (!indices.valid.defined()) {
    return false;
  }
  TORCH_CHECK(broadcast_rank(indices.safe) == indices.valid.dim(),
              "index_put with out-of-range indices needs indices of one rank");
  const at::Tensor before = table.index(indices.safe);
  const at::Tensor mask = mask_for(before, indices).expand_as(before);
  // A vector of the elements that are written, as a mask over numbered elements finds them.
  const at::Tensor numbers =
      at::arange(table.numel(), at::TensorOptions().dtype(at::kLong)).view(table.sizes());
  const at::Tensor chosen = numbers.index(indices.safe).masked_select(mask);
  const at::Tensor values =
      (*stack)[2].toTensor().to(table.scalar_type()).expand_as(before).masked_select(mask);
  at::Tensor flat = table.contiguous().view({-1}).clone();
  flat.index_put_({chosen}, values, (*stack)[3].toBool());
  const at::Tensor result = flat.view(table.sizes());
  const bool in_place = info.written[0];
  if (in_place) {
    at::Tensor(table).copy_(result);
  }
  *stack = {in_place ? table : result};
  return true;
}

at::Tensor one_hot(const at::Tensor& self, int64_t num_classes) {
  TORCH_CHECK(self.scalar_type() == at::kLong, "one_hot is only applicable to index tensor.");
  if (num_classes < 0) {
    num_classes = self.numel() == 0 ? 0 : self.max().item<int64_t>() + 1;
  }
  // Compared on the device: no host read, and a row of zeros for an index outside.
  const at::Tensor classes = at::arange(num_classes, self.options());
  return self.unsqueeze(-1).eq(classes).to(at::kLong);
}

}  // namespace

bool run_tolerantly(const OpInfo& info, const c10::OperatorHandle& op, Stack* stack) {
  switch (info.indexing) {
    case Indexing::kSelect:
      return select_rows(info, op, stack);
    case Indexing::kGather:
      return gather(info, op, stack);
    case Indexing::kIndex:
      return index(info, op, stack);
    case Indexing::kIndexPut:
      return index_put(info, op, stack);
    case Indexing::kWriteRows:
      return write_rows(info, op, stack);
    case Indexing::kScatter:
      return scatter(info, op, stack);
    case Indexing::kNone:
      break;
  }
  return false;
}

}  // namespace hpu_emulator

TORCH_LIBRARY_IMPL(aten, HPU, library) { library.impl("one_hot", &hpu_emulator::one_hot); }
