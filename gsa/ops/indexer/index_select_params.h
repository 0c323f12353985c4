// What index_select hands to its CUDA kernels. Plain data: no torch, no CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gsa {

enum class IndexActivation { kSigmoid, kHardSigmoid, kRelu };

// The budget rules that the kernel computes itself (semantics.md 4).
enum class SelectBudget { kFixed, kInverse, kAsPrinted, kRandom, kEntropy, kMaxScore };

// What the kernel that scores leaves: finished rows, or what another kernel makes them of.
enum class SelectLeaves { kRows, kLists, kScores };

struct IndexSelectParams {
  const void* index_query = nullptr;    // bf16 [batch, queries, heads, dim]
  const void* index_key = nullptr;      // bf16 [batch, keys, dim]
  const float* head_weight = nullptr;   // [batch, queries, heads]
  const float* head_bias = nullptr;     // [heads], or null for zeros
  const float* running_mean = nullptr;  // scalar, or null for kFixed
  int32_t* indices = nullptr;           // [batch, rows, capacity], ascending, padded with -1
  int32_t* counts = nullptr;            // [batch, rows]
  float* statistic = nullptr;           // [batch, queries]: what the rule reads (semantics.md, "Budgets")
  void* workspace = nullptr;            // index_select_sm90_workspace(params) bytes
  int64_t batch = 0;
  int64_t queries = 0;  // T; query t sits at position t + keys - queries
  int64_t keys = 0;     // S >= T
  int heads = 0;        // J
  int dim = 0;          // I
  int k_base = 0;
  int k_min = 0;
  int k_max = 0;
  int capacity = 0;  // K, entries of a row of indices
  int keep_first = 0;
  int keep_recent = 0;
  int query_tile = 1;
  double tile_factor = 1.5;
  IndexActivation activation = IndexActivation::kSigmoid;
  SelectBudget budget = SelectBudget::kFixed;
  const float* log_scale = nullptr;           // scalar, or null for zero; read by kEntropy
  SelectLeaves leaves = SelectLeaves::kRows;  // set by the launcher
  // Between the kernels of shared rows: null, or which rows (nonzero) are done again with longer lists.
  const int32_t* again = nullptr;
};

}  // namespace gsa
