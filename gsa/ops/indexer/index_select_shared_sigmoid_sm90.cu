// The streaming kernel of index_select for shared rows with the sigmoid activation.
#include "gsa/ops/indexer/index_select_kernel.cuh"

namespace gsa::fused_select {

cudaError_t launch_shared_sigmoid(const IndexSelectParams& params, cudaStream_t stream) {
  return launch_heads<IndexActivation::kSigmoid, true>(params, stream);
}

}  // namespace gsa::fused_select
