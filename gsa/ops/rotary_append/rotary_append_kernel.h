// Launches the CUDA kernel of rotary_append. Torch-free.
#pragma once

#include "gsa/cuda/runtime.h"
#include "gsa/ops/rotary_append/rotary_append_params.h"

namespace gsa {

// Asynchronous on `stream`. If the rows of any array are not aligned to 16 bytes, all are read an element at
// a time.
cudaError_t launch_rotary_append(const RotaryAppendParams& params, cudaStream_t stream);

}  // namespace gsa
