// Launcher of the fused index_select for Hopper (index_select_sm90.cu). Torch-free.
#pragma once

#include <cstddef>

#include "gsa/cuda/runtime.h"
#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa {

// Whether the kernel takes this problem: heads 1, 2, 4, 8; dim 32, 64, 128 (4 of 64 for kEntropy and
// kMaxScore); query_tile up to 256 and, above 1, tile_factor at least 1; 1 <= T <= S < 2^30; lists (twice
// k_max) up to 2^23 entries.
bool index_select_sm90_takes(const IndexSelectParams& params);

// Bytes that params.workspace must hold on the current device; the contents do not matter. Tests give limits
// of their own: small chunks and windows, the way rows are finished.
size_t index_select_sm90_workspace(const IndexSelectParams& params,
                                   const fused_select::SelectLimits& limits = {});

// Fills indices, counts and statistic. Asynchronous on `stream`; cudaErrorInvalidValue for problems it does
// not take.
cudaError_t launch_index_select_sm90(const IndexSelectParams& params, cudaStream_t stream,
                                     const fused_select::SelectLimits& limits = {});

namespace fused_select {

// Of the current device.
int multiprocessors();

// The kernel that scores by activation, after the workspace's header is ready; params.leaves says what for.
cudaError_t launch_sigmoid(const IndexSelectParams& params, cudaStream_t stream);
cudaError_t launch_hard_sigmoid(const IndexSelectParams& params, cudaStream_t stream);
cudaError_t launch_relu(const IndexSelectParams& params, cudaStream_t stream);

// The same for kEntropy and kMaxScore.
cudaError_t launch_softmax(const IndexSelectParams& params, cudaStream_t stream);

// The one of these that the problem wants.
cudaError_t launch_stream(const IndexSelectParams& params, cudaStream_t stream);

// Rows from stored scores, after the workspace's header is ready, chunk by chunk
// (index_select_stored_sm90.cu).
cudaError_t launch_stored(const IndexSelectParams& p, const SelectLimits& limits, cudaStream_t stream);

// Rows whose lists are kept, after the workspace's header is ready, chunk by chunk
// (index_select_kept_sm90.cu). The workspace holds list_workspace_bytes for the plan of the same limits.
cudaError_t launch_kept(const IndexSelectParams& params, const SelectLimits& limits, cudaStream_t stream);

}  // namespace fused_select
}  // namespace gsa
