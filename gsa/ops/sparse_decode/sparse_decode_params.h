// What the fused decode step takes: index_select and sparse_attention for one new token over a long cache, in
// one kernel. Plain data: no torch, no CUDA headers.
#pragma once

#include "gsa/ops/indexer/index_select_decode_params.h"

namespace gsa {

struct SparseDecodeParams {
  IndexSelectDecodeParams select;  // its indices and capacity are not used
  const void* query = nullptr;     // bf16 [batch, 1, heads, dim]
  const void* key = nullptr;       // bf16 [batch, keys, groups, dim]
  const void* value = nullptr;
  void* out = nullptr;           // bf16 [batch, 1, heads, dim]
  float* lse = nullptr;          // [batch, 1, heads]
  int64_t key_batch_stride = 0;  // elements from one row's keys to the next; tokens are contiguous
  int64_t value_batch_stride = 0;
  int heads = 0;   // H
  int groups = 0;  // G
  int dim = 0;     // E
  float scale = 0;
};

// True where the kernel serves these shapes.
bool sparse_decode_supported(const SparseDecodeParams& params, int multiprocessors);

// Bytes that select.workspace must hold, 256-byte aligned, and how many of them, at its start, are zero
// before a launch (select.workspace_zeroed; else a memset goes before the kernel) and after it.
size_t sparse_decode_workspace_bytes(const SparseDecodeParams& params, int multiprocessors);
size_t sparse_decode_zeroed_bytes(const SparseDecodeParams& params, int multiprocessors);

}  // namespace gsa
