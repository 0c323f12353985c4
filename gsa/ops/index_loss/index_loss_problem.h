#pragma once
// The arguments of both index losses after their checks: what the implementations work on.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "gsa/ops/index_loss/index_loss.h"
#include "gsa/ops/indexer/activation.h"

namespace gsa {

struct IndexLossProblem {
  at::Tensor query, key;  // [B,T,H,E], [B,S,G,E]
  at::Tensor lse;         // [B,T,H]; undefined for the loss on a selection
  at::Tensor indices;     // int32 [B,T,K]; undefined for the dense loss
  at::Tensor index_query, index_key, head_weight;
  std::optional<at::Tensor> head_bias;
  at::Tensor log_scale;
  Activation activation;
  double scale;  // of the attention logits
  int64_t keep_first, keep_recent;
  bool maximum;          // over heads, else the mean
  at::ScalarType dtype;  // of the loss and of everything computed on the way

  bool selected() const { return indices.defined(); }
  int64_t batch() const { return query.size(0); }
  int64_t queries() const { return query.size(1); }
  int64_t heads() const { return query.size(2); }
  int64_t keys() const { return key.size(1); }
  int64_t key_heads() const { return key.size(2); }
  int64_t index_heads() const { return index_query.size(2); }
};

/// Checks every argument of gsa::index_loss_dense. Throws ValueError / TypeError.
IndexLossProblem dense_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                               const at::Tensor& index_query, const at::Tensor& index_key,
                               const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                               const at::Tensor& log_scale, std::string_view activation,
                               std::optional<double> scale, int64_t keep_first, int64_t keep_recent,
                               std::string_view head_reduction);

/// Checks every argument of gsa::index_loss_selected. Throws ValueError / TypeError.
IndexLossProblem selected_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                                  const at::Tensor& counts, const at::Tensor& index_query,
                                  const at::Tensor& index_key, const at::Tensor& head_weight,
                                  const std::optional<at::Tensor>& head_bias, const at::Tensor& log_scale,
                                  std::string_view activation, std::optional<double> scale,
                                  int64_t keep_first, int64_t keep_recent, std::string_view head_reduction);

}  // namespace gsa
