// Launches the CUDA kernels of sigmoid_gate. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "gsa/ops/sigmoid_gate/sigmoid_gate_params.h"

namespace gsa {

// Asynchronous on `stream`. Arrays that are not 16-byte aligned are read an element at a time.
cudaError_t launch_sigmoid_gate_forward(const SigmoidGateParams& params, cudaStream_t stream);
cudaError_t launch_sigmoid_gate_backward(const SigmoidGateParams& params, cudaStream_t stream);

}  // namespace gsa
