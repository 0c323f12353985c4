#pragma once
// The gated lightning indexer's scores, all of them (semantics: line 3; paper Eq. 7).

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "gsa/ops/indexer/activation.h"

namespace gsa {

/// score[b,t,s] = sum_j head_weight[b,t,j] * act(index_query[b,t,j,:] . index_key[b,s,:] / sqrt(I) +
/// head_bias[j]) for s <= t + S - T, -inf in the future.
///
///   index_query [B,T,J,I], index_key [B,S,I]: one floating dtype, S >= T; index_key may be Float8_e4m3fn
///               instead, and then scores as its values do in the dtype of index_query
///   head_weight [B,T,J]: already activated, any floating dtype
///   head_bias   [J] or absent
///   activation  "sigmoid", "hard_sigmoid" or "relu"
///
/// Returns [B,T,S], fp32 (fp64 for fp64 inputs). Holds the whole [T,S] matrix: for small problems, plots and
/// tests. Differentiable in the four tensors, but not in a Float8_e4m3fn key: ValueError where that wants a
/// gradient. Throws ValueError / TypeError.
at::Tensor index_scores(const at::Tensor& index_query, const at::Tensor& index_key,
                        const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                        std::string_view activation = "sigmoid");

/// Checks the four tensors that all indexer ops share; messages name `op`. `takes_float8_key`: whether the op
/// takes an index_key in Float8_e4m3fn beside the dtype of index_query.
void check_index_inputs(std::string_view op, const at::Tensor& index_query, const at::Tensor& index_key,
                        const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                        bool takes_float8_key = false);

/// Scores of the queries [begin, end) against all keys, without the causal mask: [B, end-begin, S] in
/// `dtype`. The building block of the references; differentiable through ATen.
at::Tensor score_block(const at::Tensor& index_query, const at::Tensor& index_key,
                       const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                       Activation activation, int64_t begin, int64_t end, at::ScalarType dtype);

/// True where key s is in the future of query t, for queries [begin, end) of T over S keys: bool [end-begin,
/// S].
at::Tensor future_mask(int64_t begin, int64_t end, int64_t queries, int64_t keys, const at::Device& device);

}  // namespace gsa
