// The fused index_select for Hopper with the hard_sigmoid activation; one file each, so that they compile
// side by side.
#include "gsa/ops/indexer/index_select_kernel.cuh"

namespace gsa::fused_select {

cudaError_t launch_hard_sigmoid(const IndexSelectParams& params, cudaStream_t stream) {
  return launch_heads<IndexActivation::kHardSigmoid>(params, stream);
}

}  // namespace gsa::fused_select
