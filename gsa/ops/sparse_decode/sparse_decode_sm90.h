// Launches the fused decode step. Torch-free.
#pragma once

#include "gsa/cuda/runtime.h"
#include "gsa/ops/sparse_decode/sparse_decode_params.h"

namespace gsa {

// Asynchronous on `stream`; cudaErrorNotSupported where sparse_decode_supported is false.
cudaError_t launch_sparse_decode(const SparseDecodeParams& params, cudaStream_t stream);

}  // namespace gsa
