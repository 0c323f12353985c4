// Launches the decode kernel of index_select. Torch-free.
#pragma once

#include "gsa/cuda/runtime.h"
#include "gsa/ops/indexer/index_select_decode_params.h"

namespace gsa {

// Asynchronous on `stream`: no allocation, no synchronisation, so that it can be captured in a graph.
// cudaErrorNotSupported where index_select_decode_supported is false.
cudaError_t launch_index_select_decode(const IndexSelectDecodeParams& params, cudaStream_t stream);

}  // namespace gsa
