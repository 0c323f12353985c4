// The types of elements that kernels take, when that is decided at run time.
#pragma once

#if defined(__CUDACC__) || defined(GSA_EMULATE_CUDA)
#include "gsa/cuda/runtime.h"
#ifndef GSA_EMULATE_CUDA
#include <cuda_fp16.h>
#endif
#endif

namespace gsa {

enum class ElementType { kFloat, kHalf, kBfloat16 };

#if defined(__CUDACC__) || defined(GSA_EMULATE_CUDA)
// launch.operator()<T>() for the type of that name.
template <class Launch>
cudaError_t dispatch(ElementType type, Launch&& launch) {
  switch (type) {
    case ElementType::kFloat:
      return launch.template operator()<float>();
    case ElementType::kHalf:
      return launch.template operator()<__half>();
    case ElementType::kBfloat16:
      return launch.template operator()<__nv_bfloat16>();
  }
  return cudaErrorInvalidValue;
}
#endif

}  // namespace gsa
