// The fused index_select for Hopper with the sigmoid activation; one file each, so that they compile side by
// side.
#include "gsa/ops/indexer/index_select_kernel.cuh"

namespace gsa::fused_select {

cudaError_t launch_sigmoid(const IndexSelectParams& params, cudaStream_t stream) {
  return launch_heads<IndexActivation::kSigmoid>(params, stream);
}

}  // namespace gsa::fused_select
