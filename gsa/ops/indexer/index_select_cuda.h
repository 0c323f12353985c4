#pragma once
// index_select by its fused kernels for Hopper GPUs.

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa {

/// index_select on a CUDA device, or nothing where the fused kernels do not take the problem
/// (index_select_sm90_takes; bf16, index_key also Float8_e4m3fn; a Hopper GPU). Arguments must have passed
/// check_index_select. `limits` decide what the kernel that scores leaves; the results are the same.
std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> index_select_fused(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale,
    const fused_select::SelectLimits& limits = {});

}  // namespace gsa
