// Launcher of the fused index_select: what it takes, its workspace, and the look at the keys that precedes
// it.
#include "gsa/ops/indexer/index_select_sm90.h"

#include <algorithm>

#include "gsa/cuda/grid.h"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_stored_plan.h"

namespace gsa {
namespace fused_select {

int multiprocessors() {
  int count = 0;
  static_cast<void>(cuda::count_multiprocessors(&count));
  return count;
}

static bool wants_softmax(const IndexSelectParams& p) {
  return p.budget == SelectBudget::kEntropy || p.budget == SelectBudget::kMaxScore;
}

cudaError_t launch_stream(const IndexSelectParams& p, cudaStream_t stream) {
  if (wants_softmax(p)) return launch_softmax(p, stream);
  switch (p.activation) {
    case IndexActivation::kSigmoid:
      return launch_sigmoid(p, stream);
    case IndexActivation::kHardSigmoid:
      return launch_hard_sigmoid(p, stream);
    case IndexActivation::kRelu:
      return launch_relu(p, stream);
  }
  return cudaErrorInvalidValue;
}

namespace {

// Makes the header: counters, and where keys need the careful path.
__global__ void look_for_wild_keys(const uint4* keys, int64_t vectors, Header* header) {
  cuda::launch_dependents();
  if (threadIdx.x == 0) header->wild[blockIdx.x] = 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) header->next_tile = header->rows_again = 0;
  __syncthreads();
  bool wild = false;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < vectors;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint4 v = keys[i];
    wild |= is_wild(v.x) || is_wild(v.y) || is_wild(v.z) || is_wild(v.w);
  }
  if (wild) header->wild[blockIdx.x] = 1;
}

}  // namespace
}  // namespace fused_select

bool index_select_sm90_takes(const IndexSelectParams& p) {
  using namespace fused_select;
  const bool heads = p.heads == 1 || p.heads == 2 || p.heads == 4 || p.heads == 8;
  const bool dim = p.dim == 32 || p.dim == 64 || p.dim == 128;
  const bool rows = p.query_tile == 1 || (p.query_tile >= 2 && p.query_tile <= 256 && p.tile_factor >= 1 &&
                                          p.tile_factor * p.k_max < (1 << 29));
  const bool budget = !wants_softmax(p) || (p.heads == 4 && p.dim == 64);
  return heads && dim && budget && rows && p.batch >= 1 && p.queries >= 1 && p.queries <= p.keys &&
         p.keys < (int64_t{1} << 30) && p.batch * p.queries < (int64_t{1} << 31) && p.k_max >= 1 &&
         list_capacity(p) <= kMaxList;
}

size_t index_select_sm90_workspace(const IndexSelectParams& p, const fused_select::SelectLimits& limits) {
  using namespace fused_select;
  switch (select_leaves(p, limits)) {
    case SelectLeaves::kScores:
      return stored_workspace_bytes(p, plan_scores(p, limits));
    case SelectLeaves::kLists:
      return list_workspace_bytes(p, plan_lists(p, multiprocessors(), limits));
    case SelectLeaves::kRows:
      return workspace_bytes(p, multiprocessors());
  }
  return 0;
}

cudaError_t launch_index_select_sm90(const IndexSelectParams& p, cudaStream_t stream,
                                     const fused_select::SelectLimits& limits) {
  using namespace fused_select;
  if (!index_select_sm90_takes(p)) return cudaErrorInvalidValue;
  const cudaError_t looked = cuda::launch(look_for_wild_keys, Header::kLookers, 512, 0, stream,
                                          static_cast<const uint4*>(p.index_key),
                                          p.batch * p.keys * p.dim / 8, static_cast<Header*>(p.workspace));
  if (looked != cudaSuccess) return looked;
  switch (select_leaves(p, limits)) {
    case SelectLeaves::kScores:
      return launch_stored(p, limits, stream);
    case SelectLeaves::kLists:
      return launch_kept(p, limits, stream);
    case SelectLeaves::kRows:
      return launch_stream(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gsa
