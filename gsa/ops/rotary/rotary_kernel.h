// Launches the CUDA kernel of rotary. Torch-free.
#pragma once

#include "gsa/cuda/runtime.h"
#include "gsa/ops/rotary/rotary_params.h"

namespace gsa {

// Asynchronous on `stream`. Arrays whose rows are not 16-byte aligned are read an element at a time.
cudaError_t launch_rotary(const RotaryParams& params, cudaStream_t stream);

}  // namespace gsa
