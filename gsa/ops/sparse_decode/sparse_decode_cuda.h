#pragma once
// sparse_decode by its kernel for Hopper GPUs.

#include <optional>

#include "gsa/ops/sparse_decode/sparse_decode.h"

namespace gsa {

/// One new token (T = 1) of `least_batch` sequences or more, or nothing where the kernel does not take the
/// problem (sparse_decode_supported; bf16, index_key also Float8_e4m3fn, caches whose tokens are contiguous,
/// a Hopper GPU). For fewer sequences the two kernels are as fast or faster. Arguments must have passed the
/// checks of sparse_decode.
std::optional<SparseDecodeResult> sparse_decode_fused(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& index_query,
    const at::Tensor& index_key, const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
    const IndexSelectOptions& options, double scale, int64_t least_batch = 4);

}  // namespace gsa
