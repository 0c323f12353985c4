#pragma once
// index_select by its decode kernel: few new tokens over a long cache, on Hopper GPUs.

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "gsa/ops/indexer/index_select.h"

namespace gsa {

/// index_select for T <= 8 queries, or nothing where the kernel does not take the problem (bf16, index_key
/// also Float8_e4m3fn, J 1, 2, 4 or 8, I 32, 64 or 128, query_tile 1, a Hopper GPU). Arguments must have
/// passed check_index_select.
///
/// `lengths`, int32 [B] on the device: the tokens in each row's cache, the T new ones included; index_key is
/// then padded to S for all rows, and query t sits at position t + length - T. Lengths stay on the device, so
/// that a captured graph serves growing caches. Allocates outputs and, in a capture, its workspace.
///
/// `read_next`: up to two caches [B,S,...] whose selected tokens are read next, keys and values: they are
/// brought into the second-level cache before the selection is finished. That pays for one sequence only;
/// more keep the memory busy anyway. Caches whose tokens are not contiguous, aligned to 16 bytes, are left
/// alone.
std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> index_select_decode(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale,
    const std::optional<at::Tensor>& lengths = std::nullopt, at::TensorList read_next = {});

}  // namespace gsa
