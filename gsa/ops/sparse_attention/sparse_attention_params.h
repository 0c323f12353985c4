// What the sparse attention kernels read and write, shared by host and device code; no torch here.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gsa/cuda/element_type.h"

namespace gsa {

struct SparseAttentionParams {
  const void* query;       // [B, T, H, E]
  const void* key;         // [B, S, G, E]
  const void* value;       // [B, S, G, E]
  const int32_t* indices;  // [B, R, K] ascending, padded with -1, contiguous
  const int32_t* counts;   // [B, R]
  void* out;               // [B, T, H, E], contiguous, in the type of the query
  float* lse;              // [B, T, H], natural logarithm

  // Distances in elements of the batch, token and head dimensions; E is contiguous.
  int64_t query_stride[3];
  int64_t key_stride[3];
  int64_t value_stride[3];

  int batch, queries, keys;  // B, T, S; query t sits at position t + S - T
  int heads, kv_heads, dim;  // H, G, E
  int rows, capacity;        // R, K
  int query_tile;            // queries that share a row of indices
  float scale;
  ElementType type;
};

// Bytes of device memory that launch_sparse_attention_forward_sm90 needs beside its outputs.
size_t sparse_attention_forward_workspace_sm90(const SparseAttentionParams& params);

// Hopper, bf16, E 64 or 128, H / G up to 16, query_tile 1 or 64, scale > 0, rows 16-byte aligned (strides
// multiples of 8); cudaErrorNotSupported otherwise. Asynchronous on `stream`. `workspace` is aligned to 256
// bytes.
cudaError_t launch_sparse_attention_forward_sm90(const SparseAttentionParams& params, void* workspace,
                                                 cudaStream_t stream);

// sm_80 and later, every type, E 32, 64, 128 or 256 (cudaErrorInvalidValue otherwise): gathers each query's
// own keys, so it moves far more bytes. Where `redo` is not null it lists the tiles that are attended, of
// `redo_queries` queries (a multiple of 4) each: how many, then which (tile = batch * ceil(T / redo_queries)
// + t / redo_queries).
cudaError_t launch_sparse_attention_forward_generic(const SparseAttentionParams& params, const int32_t* redo,
                                                    int redo_queries, cudaStream_t stream);

}  // namespace gsa
