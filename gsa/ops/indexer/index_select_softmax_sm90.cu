// The streaming kernel of index_select for the budgets that read the scores' entropy or maximum, for the
// shape that models have.
#include "gsa/ops/indexer/index_select_kernel.cuh"

namespace gsa::fused_select {
namespace {

template <IndexActivation kActivation>
cudaError_t launch_rows(const IndexSelectParams& p, cudaStream_t stream) {
  return launch<Shape<4, 64, kActivation, true>>(p, stream);
}

}  // namespace

cudaError_t launch_softmax(const IndexSelectParams& p, cudaStream_t stream) {
  if (p.heads != 4 || p.dim != 64) return cudaErrorInvalidValue;
  switch (p.activation) {
    case IndexActivation::kSigmoid:
      return launch_rows<IndexActivation::kSigmoid>(p, stream);
    case IndexActivation::kHardSigmoid:
      return launch_rows<IndexActivation::kHardSigmoid>(p, stream);
    case IndexActivation::kRelu:
      return launch_rows<IndexActivation::kRelu>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gsa::fused_select
