#pragma once
// Choosing where to compute. libtorch_cuda takes a second to load, so it is loaded only when a GPU is wanted
// and there.

#include <c10/core/Device.h>

#include <string_view>

namespace gsa {

/// Loads libtorch_cuda if the machine has an NVIDIA driver; true when at least one CUDA device can be used.
bool cuda_available();

/// "auto" (CUDA when available), "cpu", "cuda" or "cuda:N". Throws Error for another name or an absent
/// device.
c10::Device parse_device(std::string_view name);

}  // namespace gsa
