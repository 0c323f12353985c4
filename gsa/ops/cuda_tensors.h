#pragma once
// What the torch sides of CUDA kernels ask of tensors and their device.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace gsa {

/// Of the tensor's device. Asked of the runtime, not of ATen: libgsa is not linked to libtorch_cuda.
inline int device_attribute(cudaDeviceAttr attribute, const at::Tensor& tensor) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, tensor.get_device()));
  return value;
}

inline bool is_hopper(const at::Tensor& tensor) {
  return device_attribute(cudaDevAttrComputeCapabilityMajor, tensor) == 9;
}

/// Begins where 16-byte loads and the copy engine can read.
inline bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

/// A cache whose tokens lie side by side, as views of a larger one do; rows may lie anywhere.
inline bool is_cache(const at::Tensor& tensor) {
  int64_t inner = 1;
  bool packed = is_aligned(tensor) && tensor.stride(0) * tensor.element_size() % 16 == 0;
  for (int64_t i = tensor.dim() - 1; i > 0; inner *= tensor.size(i--))
    packed = packed && (tensor.size(i) == 1 || tensor.stride(i) == inner);
  return packed;
}

/// Contiguous and aligned: a copy where the tensor is not that already.
inline at::Tensor as_aligned(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  return is_aligned(whole) ? whole : whole.clone();
}

}  // namespace gsa
