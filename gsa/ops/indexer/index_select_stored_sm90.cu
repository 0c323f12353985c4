// Launcher of index_select where all scores are stored: for each chunk of queries one kernel scores, others
// select.
#include "gsa/ops/indexer/index_select_sm90.h"
#include "gsa/ops/indexer/index_select_stored_rows.cuh"

namespace gsa::fused_select {
namespace {

template <int kThreads, class Scratch, class... Parameters, class... Arguments>
cudaError_t launch_rows(void (*kernel)(Parameters...), int64_t rows, const IndexSelectParams& p,
                        cudaStream_t stream, const Arguments&... arguments) {
  const int bytes = row_bytes<Scratch>(p);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return cuda::launch_early(kernel, static_cast<int>(rows), kThreads, bytes, stream, p, arguments...);
}

template <int kThreads>
cudaError_t launch_queries(const IndexSelectParams& p, cudaStream_t stream) {
  if (stores_codes(p))
    return launch_rows<kThreads, CodedRowScratch<kThreads>>(coded_row_kernel<kThreads>, p.batch * p.queries,
                                                            p, stream, stored_scores(p));
  const auto kernel =
      p.query_tile == 1 ? stored_row_kernel<kThreads, false> : stored_row_kernel<kThreads, true>;
  return launch_rows<kThreads, StoredRowScratch<kThreads>>(kernel, p.batch * p.queries, p, stream,
                                                           stored_scores(p), stored_space(p));
}

cudaError_t launch_tiles(const IndexSelectParams& p, cudaStream_t stream) {
  const int64_t rows = p.batch * rows_of(p);
  const int steps = static_cast<int>((p.keys + kMarginStep - 1) / kMarginStep);
  const cudaError_t error =
      cuda::launch(margin_kernel, static_cast<int>(rows * steps), kMarginThreads,
                   p.query_tile * sizeof(float), stream, p, stored_scores(p), stored_space(p), steps);
  if (error != cudaSuccess) return error;
  return launch_rows<256, StoredRowScratch<256>>(tile_row_kernel<256>, rows, p, stream, stored_space(p));
}

}  // namespace

cudaError_t launch_stored(const IndexSelectParams& p, const SelectLimits& limits, cudaStream_t stream) {
  const Chunks chunks = plan_scores(p, limits);
  cudaError_t error = cudaSuccess;
  for (int64_t i = 0; i < chunks.count && error == cudaSuccess; ++i) {
    IndexSelectParams chunk = chunk_of(p, chunks, i);
    chunk.leaves = SelectLeaves::kScores;
    error = launch_stream(chunk, stream);
    if (error != cudaSuccess) return error;
    switch (row_threads(chunk, multiprocessors())) {
      case 64:
        error = launch_queries<64>(chunk, stream);
        break;
      case 128:
        error = launch_queries<128>(chunk, stream);
        break;
      case 256:
        error = launch_queries<256>(chunk, stream);
        break;
      default:
        error = launch_queries<512>(chunk, stream);
    }
    if (error == cudaSuccess && p.query_tile > 1) error = launch_tiles(chunk, stream);
  }
  return error;
}

}  // namespace gsa::fused_select
