// Launches the decode kernel of sparse_attention. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "gsa/ops/sparse_attention/sparse_attention_decode_params.h"

namespace gsa {

// Asynchronous on `stream`, needs no workspace: no allocation, no synchronisation, so that it can be captured
// in a graph. cudaErrorNotSupported where sparse_attention_decode_supported is false.
cudaError_t launch_sparse_attention_decode(const SparseAttentionDecodeParams& params, cudaStream_t stream);

}  // namespace gsa
