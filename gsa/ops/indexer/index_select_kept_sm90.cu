// Launcher of index_select where lists are kept: for each chunk of queries the streaming kernel fills their
// lists, another one finishes the rows; rows that queries share are then merged from the lists.
#include <cstddef>

#include "gsa/ops/indexer/index_select_kept.cuh"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_merge.cuh"
#include "gsa/ops/indexer/index_select_sm90.h"

namespace gsa::fused_select {
namespace {

// The rows of a chunk; `again`: those of its shared rows alone that want longer lists.
cudaError_t launch_chunk(const IndexSelectParams& p, const ListPlan& plan, bool again, cudaStream_t stream) {
  const ListSpace space = list_space(p, plan.merged);
  IndexSelectParams chunk = p;
  if (again)
    chunk.again = reinterpret_cast<const int32_t*>(static_cast<const char*>(p.workspace) + space.again_at);
  // The counter of tiles starts again; what is known of the keys stays.
  const size_t counters = again ? offsetof(Header, rows_again) : offsetof(Header, wild);
  cudaError_t error = cudaMemsetAsync(p.workspace, 0, counters, stream);
  if (error != cudaSuccess) return error;
  error = launch_stream(chunk, stream);
  if (error != cudaSuccess) return error;
  const int scratch = kept_scratch_bytes(p);
  const int64_t rows = p.batch * p.queries;
  error = cuda::launch(finish_kernel, static_cast<int>((rows + kKeptWarps - 1) / kKeptWarps), 32 * kKeptWarps,
                       scratch * kKeptWarps, stream, chunk, space, scratch);
  if (error != cudaSuccess || p.query_tile == 1) return error;
  return cuda::launch(merge_kernel, static_cast<int>(p.batch * rows_of(p)), kMergeThreads,
                      merge_shared_bytes(plan.window), stream, chunk, space, plan.merged, plan.window);
}

}  // namespace

cudaError_t launch_kept(const IndexSelectParams& p, const SelectLimits& limits, cudaStream_t stream) {
  const ListPlan plan = plan_lists(p, multiprocessors(), limits);
  cudaError_t error = cudaFuncSetAttribute(finish_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           kept_scratch_bytes(p) * kKeptWarps);
  if (error == cudaSuccess && p.query_tile > 1)
    error = cudaFuncSetAttribute(merge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 merge_shared_bytes(plan.window));
  for (int64_t i = 0; i < plan.chunks.count && error == cudaSuccess; ++i) {
    IndexSelectParams chunk = chunk_of(p, plan.chunks, i);
    chunk.leaves = SelectLeaves::kLists;
    error = launch_chunk(chunk, plan, false, stream);
    if (error == cudaSuccess && p.query_tile > 1) error = launch_chunk(chunk, plan, true, stream);
  }
  return error;
}

}  // namespace gsa::fused_select
