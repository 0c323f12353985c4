// Launcher of index_select's shared rows: for each chunk of queries the streaming kernel fills the queries'
// lists, then the merge makes rows of them.
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_merge.cuh"
#include "gsa/ops/indexer/index_select_sm90.h"

namespace gsa::fused_select {

cudaError_t launch_shared(const IndexSelectParams& p, const SharedLimits& limits, cudaStream_t stream) {
  const SharedPlan plan = plan_shared(p, multiprocessors(), limits);
  const int shared = merge_shared_bytes(plan.window);
  cudaError_t error = cudaFuncSetAttribute(merge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  for (int64_t i = 0; i < plan.chunks && error == cudaSuccess; ++i) {
    const IndexSelectParams chunk = shared_chunk(p, plan, i);
    // The counter of tiles starts again; what is known of the keys stays.
    error =
        cudaMemsetAsync(&static_cast<Header*>(p.workspace)->next_tile, 0, sizeof(Header::next_tile), stream);
    if (error == cudaSuccess) error = launch_stream(chunk, stream);
    if (error != cudaSuccess) break;
    const int64_t tiles = (chunk.queries + p.query_tile - 1) / p.query_tile;
    error = cuda::launch(merge_kernel, static_cast<int>(chunk.batch * tiles), kMergeThreads, shared, stream,
                         chunk, shared_space(chunk), plan.merged, plan.window);
  }
  return error;
}

}  // namespace gsa::fused_select
