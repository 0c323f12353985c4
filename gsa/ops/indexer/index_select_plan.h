// Sizes and heuristics of the fused index_select: pure functions, shared by host, device and tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "gsa/ops/indexer/index_select_params.h"

#ifdef __CUDACC__
#define GSA_HOST_DEVICE __host__ __device__
#else
#define GSA_HOST_DEVICE
#endif

namespace gsa::fused_select {

constexpr int kBlockKeys = 64;      // keys of one block of the key stream
constexpr int kSampleStride = 32;   // the sample takes every 32nd key
constexpr int kLanesPerRow = 4;     // threads that share a query's scores, each with a list of its own
constexpr int kStaged = 32;         // survivors a lane gathers before it stores them
constexpr int kBins = 128;          // of a row's histogram of survivors
constexpr int kHeaderBytes = 1024;  // of the workspace: work counter and flags

// Survivors a lane can hold. A row's lists together hold twice the largest budget, so that a full list means
// that trimming to the budget frees at least half of the row; every lane has room for what one block may add.
GSA_HOST_DEVICE constexpr int lane_capacity(int k_max, int64_t keys) {
  const int64_t need = k_max < keys ? k_max : keys;
  const int64_t lane = 2 * need / kLanesPerRow + 64;
  return static_cast<int>((lane + 15) / 16 * 16);
}

// Strided sample blocks that all lie before `first_position`, the first query of a tile; none while the lists
// hold every key anyway.
GSA_HOST_DEVICE constexpr int sample_blocks(int64_t first_position, int lane_capacity) {
  if (first_position < int64_t{kLanesPerRow} * lane_capacity) return 0;
  return static_cast<int>(first_position / (kBlockKeys * kSampleStride));
}

// Where a sample block starts within its strides: different from block to block, so that keys with a period
// that divides the stride's multiples do not fool the sample.
GSA_HOST_DEVICE constexpr int sample_phase(int block) {
  return (11 + 13 * block) % kSampleStride;
}

// Rank in a sample of `samples` scores whose value is, but for about one row in thirty thousand, below the
// need-th best of `valid` scores. More than `samples` when the sample cannot tell.
GSA_HOST_DEVICE inline int sample_rank(int samples, int need, int64_t valid) {
  const float share = static_cast<float>(need) / static_cast<float>(valid);
  const float spread = sqrtf(samples * share * (1.0f - share));
  const float rank = samples * share + 4.0f * spread + 4.0f;
  return rank < samples ? static_cast<int>(rank) : samples + 1;
}

// Queries of one block's tile: warpgroups of 32 queries; 8 heads leave registers for two of them.
GSA_HOST_DEVICE constexpr int consumer_warpgroups(int heads, int dim) {
  return heads == 8 || (heads == 4 && dim == 128) ? 2 : 3;
}
GSA_HOST_DEVICE constexpr int tile_queries(int heads, int dim) {
  return 32 * consumer_warpgroups(heads, dim);
}

// Bytes of workspace for a grid of `blocks` thread blocks.
inline size_t workspace_bytes(const IndexSelectParams& params, int blocks) {
  const size_t rows = static_cast<size_t>(blocks) * tile_queries(params.heads, params.dim);
  return kHeaderBytes + rows * kLanesPerRow * lane_capacity(params.k_max, params.keys) * 8;
}

}  // namespace gsa::fused_select
