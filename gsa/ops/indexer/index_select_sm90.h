// Launcher of the fused index_select for Hopper (index_select_sm90.cu). Torch-free.
#pragma once

#include <cstddef>

#include "gsa/cuda/runtime.h"
#include "gsa/ops/indexer/index_select_params.h"

namespace gsa {

// Whether the kernel takes this problem: heads 1, 2, 4, 8; dim 32, 64, 128; query_tile 1; 1 <= T <= S < 2^30.
bool index_select_sm90_takes(const IndexSelectParams& params);

// Bytes that params.workspace must hold on the current device; the contents do not matter.
size_t index_select_sm90_workspace(const IndexSelectParams& params);

// Fills indices, counts and statistic. Asynchronous on `stream`; cudaErrorInvalidValue for problems it does
// not take.
cudaError_t launch_index_select_sm90(const IndexSelectParams& params, cudaStream_t stream);

namespace fused_select {

// Of the current device.
int multiprocessors();

// Tiles of queries, over the batch.
int64_t work_count(const IndexSelectParams& params);

// The kernel by activation, after the workspace's header is ready.
cudaError_t launch_sigmoid(const IndexSelectParams& params, cudaStream_t stream);
cudaError_t launch_hard_sigmoid(const IndexSelectParams& params, cudaStream_t stream);
cudaError_t launch_relu(const IndexSelectParams& params, cudaStream_t stream);

}  // namespace fused_select
}  // namespace gsa
