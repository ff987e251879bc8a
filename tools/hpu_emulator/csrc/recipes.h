// Recipes: what a Gaudi would compile and launch for the ops that it is given.
//
// The key of a recipe is a sequence of words. One op is
//   kOp, name, number of arguments, then per argument one of
//     kTensor, place, dtype, constant, bytes of its storage or 0, offset, rank, sizes, strides
//     kHostScalar dtype | kNumber kind | kNone | kInt v | kBool v | kFloat bits | kText hash
//     kInts n v... | kList n (arguments) | kOther
//   then kResults n (arguments).
// `place` numbers storages in the order of their appearance. A lazy graph ends with
// kAlive, n, and one word per storage: 1 when the graph wrote it and it is alive at the flush.
// Eager keys know only dtypes and ranks of tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "op_info.h"

namespace hpu_emulator {

enum Word : int64_t {
  kOp = -1000001,
  kTensor,
  kHostScalar,
  kNumber,
  kNone,
  kInt,
  kBool,
  kFloat,
  kText,
  kInts,
  kList,
  kOther,
  kResults,
  kAlive,
  kRank,
};

struct RecipeCounts {
  int64_t compilations = 0;
  int64_t launches = 0;
  int64_t ops = 0;  // that ran on the device, in or out of recipes
};

struct RecipeSettings {
  bool lazy = false;
  int64_t max_ops = INT64_MAX;  // PT_HPU_MAX_COMPOUND_OP_SIZE
  bool compile_only = false;
};

RecipeSettings& recipe_settings();
RecipeCounts recipe_counts();
void reset_recipes();
int64_t num_recipes();

// An op has run: it joins the lazy graph, or is a recipe of its own.
void record(const OpInfo& info, c10::ArrayRef<c10::IValue> arguments,
            c10::ArrayRef<c10::IValue> results);
// Ends the lazy graph and launches it. Does nothing outside of lazy mode, or without ops.
void flush();
int64_t num_pending_ops();

// What runs in between is one recipe, whose key the caller knows. Regions do not nest.
void begin_region();
void end_region(const std::string& key, int64_t num_ops);
// The region failed: nothing is counted.
void abandon_region();
// A recipe is launched again without its ops being issued.
void count_launch(int64_t recipe);
// Number of the recipe launched last, or -1.
int64_t last_recipe();

// Tensors whose values are compiled into the recipes that use them.
void mark_constant(const at::Tensor& tensor);
void unmark_constants();

}  // namespace hpu_emulator
