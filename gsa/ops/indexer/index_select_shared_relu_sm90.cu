// The streaming kernel of index_select for shared rows with the ReLU activation.
#include "gsa/ops/indexer/index_select_kernel.cuh"

namespace gsa::fused_select {

cudaError_t launch_shared_relu(const IndexSelectParams& params, cudaStream_t stream) {
  return launch_heads<IndexActivation::kRelu, true>(params, stream);
}

}  // namespace gsa::fused_select
