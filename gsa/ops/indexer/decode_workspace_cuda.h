#pragma once
// Workspaces of decode kernels, which want part of them zero and leave that zero again.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <functional>

namespace gsa {

/// Calls launch(memory, is_zero) with `bytes` of device memory, 256-byte aligned, on the device of `like`;
/// the kernel that it launches on the current stream leaves the first `zeroed` bytes zero, and must zero them
/// first unless is_zero. Outside a capture the memory stays with the stream. Under one it is the graph's own,
/// as a graph may be replayed on any stream, beside anything; where that is much it comes from the graph's
/// pool, which other calls use between replays, and is not zero.
void with_decode_workspace(size_t bytes, size_t zeroed, const at::Tensor& like,
                           const std::function<void(void* memory, bool is_zero)>& launch);

}  // namespace gsa
