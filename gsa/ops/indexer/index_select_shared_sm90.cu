// Launcher of index_select's shared rows: for each chunk of queries the streaming kernel fills the queries'
// lists, then the merge makes rows of them.
#include <cstddef>

#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_merge.cuh"
#include "gsa/ops/indexer/index_select_sm90.h"

namespace gsa::fused_select {

cudaError_t launch_shared(const IndexSelectParams& p, const SharedLimits& limits, cudaStream_t stream) {
  const SharedPlan plan = plan_shared(p, multiprocessors(), limits);
  const int shared = merge_shared_bytes(plan.window);
  cudaError_t error = cudaFuncSetAttribute(merge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  for (int64_t i = 0; i < plan.chunks && error == cudaSuccess; ++i) {
    IndexSelectParams chunk = shared_chunk(p, plan, i);
    const SharedSpace space = shared_space(chunk, plan.merged);
    const int64_t tiles = chunk.batch * ((chunk.queries + p.query_tile - 1) / p.query_tile);
    // Twice: the second time for the rows, if there are any, that need longer lists.
    for (const bool again : {false, true}) {
      if (again)
        chunk.again =
            reinterpret_cast<const int32_t*>(static_cast<const char*>(p.workspace) + space.again_at);
      // The counter of tiles starts again; what is known of the keys stays.
      const size_t counters = again ? offsetof(Header, rows_again) : offsetof(Header, wild_keys);
      error = cudaMemsetAsync(p.workspace, 0, counters, stream);
      if (error == cudaSuccess) error = launch_stream(chunk, stream);
      if (error == cudaSuccess)
        error = cuda::launch(merge_kernel, static_cast<int>(tiles), kMergeThreads, shared, stream, chunk,
                             space, plan.merged, plan.window);
      if (error != cudaSuccess) return error;
    }
  }
  return error;
}

}  // namespace gsa::fused_select
