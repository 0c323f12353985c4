// The CUDA headers that kernels need, or nothing where the kernel is compiled for the host emulation
// (gsa/testing/cuda_emulation.h, which comes first and declares the same names).
#pragma once

#ifndef GSA_EMULATE_CUDA
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif
