// What index_select hands to its decode kernel: few new tokens over a long cache. Plain data: no torch, no
// CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gsa/ops/indexer/index_select_params.h"

namespace gsa {

// A cache of one sequence, whose selected tokens are read next.
struct ReadNext {
  const void* tokens = nullptr;  // null: none
  int token_bytes = 0;           // a multiple of 16, like the address
};

struct IndexSelectDecodeParams : IndexSelectParams {
  // [batch] tokens in each row's cache, the new ones included, 0 .. keys; null: every row holds `keys`.
  const int32_t* lengths = nullptr;
  int64_t key_batch_stride = 0;  // elements from one row's index keys to the next
  bool float8_keys = false;      // index_key is e4m3, not bf16; dim 64 or 128
  // The workspace's first index_select_decode_zeroed_bytes are zero: allocated so, or left by a launch of the
  // same shapes before. Else a memset goes before the kernel.
  bool workspace_zeroed = false;
  // For one sequence: brought into the second-level cache as soon as selected tokens are known, if both are
  // given.
  ReadNext read_next[2];
};

namespace decode {

constexpr int kMaxTokens = 8;          // T
constexpr int kMaxColumns = 64;        // T * J
constexpr int kThreads = 512;          // one CTA a multiprocessor
constexpr int kBins = 2048;            // of a histogram of scores
constexpr int kRounds = 4;             // histograms that pin any 32-bit score: 11 bits each, with one spare
constexpr int kCandidates = 512;       // scores that share the boundary bin and are ranked one by one
constexpr int kMaxRowsPerLaunch = 64;  // rows of the batch in one launch; more are taken in turn

// One CTA works on one row. A row of length `length` among rows of `total` tokens gets this many of them, so
// that the parts are of nearly equal length and every row has at least one.
constexpr int row_splits(int64_t length, int64_t total, int batch, int ctas) {
  return total == 0 ? 1 : 1 + static_cast<int>((ctas - batch) * length / total);
}

// Keys of one part, a multiple of the 64 keys that a warp's step may hold.
constexpr int64_t part_keys(int64_t length, int splits) {
  return ((length + splits - 1) / splits + 63) / 64 * 64;
}

// The longest part that any choice of lengths <= keys can give: splits > (ctas - batch) * length / total.
constexpr int64_t longest_part(int64_t keys, int batch, int ctas) {
  const int64_t bound = ctas > batch ? (keys * batch + ctas - batch - 1) / (ctas - batch) : keys;
  return ((bound < keys ? bound : keys) + 63) / 64 * 64;
}

}  // namespace decode

// True where the kernel serves these shapes; otherwise the general path must.
bool index_select_decode_supported(const IndexSelectDecodeParams& params);

// Bytes that params.workspace must hold for a device of `multiprocessors`, 256-byte aligned, and how many of
// them, at its start, a launch leaves zero.
size_t index_select_decode_workspace_bytes(const IndexSelectDecodeParams& params, int multiprocessors);
size_t index_select_decode_zeroed_bytes(const IndexSelectDecodeParams& params, int multiprocessors);

}  // namespace gsa
