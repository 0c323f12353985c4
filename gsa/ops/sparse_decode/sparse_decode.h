#pragma once
// Selection and attention of new tokens over a cache in one op (semantics: lines 4 to 6).

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "gsa/ops/indexer/index_select.h"

namespace gsa {

struct SparseDecodeResult {
  at::Tensor out;        // [B,T,H,E] in the dtype of query
  at::Tensor lse;        // fp32 [B,T,H] (fp64 for fp64)
  at::Tensor counts;     // int32 [B,T]: how many keys a query attended
  at::Tensor statistic;  // fp32 [B,T]: what the budget rule read
};

/// sparse_attention over what index_select chooses, with rows of their own (options.query_tile is 1): the
/// same arguments, results and errors, without the indices. On a Hopper GPU one kernel does both where it
/// takes the problem and is faster (sparse_decode_cuda.h); elsewhere the two ops run one after the other, and
/// the result is differentiable in query, key and value.
SparseDecodeResult sparse_decode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& index_query, const at::Tensor& index_key,
                                 const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                                 const std::optional<at::Tensor>& running_mean,
                                 const IndexSelectOptions& options,
                                 const std::optional<at::Tensor>& log_scale = std::nullopt,
                                 std::optional<double> scale = std::nullopt);

}  // namespace gsa
