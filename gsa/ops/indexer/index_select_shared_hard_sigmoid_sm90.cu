// The streaming kernel of index_select for shared rows with the hard sigmoid activation.
#include "gsa/ops/indexer/index_select_kernel.cuh"

namespace gsa::fused_select {

cudaError_t launch_shared_hard_sigmoid(const IndexSelectParams& params, cudaStream_t stream) {
  return launch_heads<IndexActivation::kHardSigmoid, true>(params, stream);
}

}  // namespace gsa::fused_select
