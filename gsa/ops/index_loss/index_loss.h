#pragma once
// What the indexer learns from: the divergence of its distribution from the attention's (semantics:
// "Training").

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace gsa {

struct IndexLossOptions {
  std::string activation = "sigmoid";  // of the indexer: "sigmoid", "hard_sigmoid" or "relu"
  std::optional<double> scale;         // of the attention logits; 1/sqrt(E) when absent
  int64_t keep_first = 0;   // positions 0 .. keep_first-1 and the last keep_recent ones up to the query's own
  int64_t keep_recent = 0;  //   are selected whatever their scores: the loss leaves them out
  std::string head_reduction = "mean";  // "mean" or "max" over the attention heads
};

/// KL(p_t || softmax(exp(log_scale) * score_t)) per query t, in nats, over the keys s <= t + S - T that are
/// not kept anyway. p_t is the mean or the maximum over heads of the dense attention probabilities exp(scale
/// * query . key - lse), kept keys left out, renormalised to one. 0 where a query has no key beyond its kept
/// ones (or no attention on any).
///
///   query [B,T,H,E], key [B,S,G,E] (H % G == 0, S >= T), lse [B,T,H]: the attention's; no gradient reaches
///   them index_query [B,T,J,I], index_key [B,S,I], head_weight [B,T,J], head_bias [J] or absent: as in
///   index_scores log_scale: one number
///
/// Returns fp32 [B,T] (fp64 for an fp64 index_query). Differentiable in index_query, index_key, head_weight,
/// head_bias and log_scale. Works in blocks of queries: memory O(block * S) beside inputs and gradients;
/// backward computes everything again. Throws ValueError / TypeError.
at::Tensor index_loss_dense(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                            const at::Tensor& index_query, const at::Tensor& index_key,
                            const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                            const at::Tensor& log_scale, const IndexLossOptions& options = {});

/// The same over the selected keys only: p_t from the attention probabilities over the query's selection, and
/// the indexer's softmax over the selected keys that are not kept anyway.
///
///   indices int32 [B,T,K] ascending, padded with -1; counts int32 [B,T]. One row a query: rows that serve
///   several queries are repeated by the caller (repeat_interleave over the rows); keys in a query's future
///   are left out here.
at::Tensor index_loss_selected(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                               const at::Tensor& counts, const at::Tensor& index_query,
                               const at::Tensor& index_key, const at::Tensor& head_weight,
                               const std::optional<at::Tensor>& head_bias, const at::Tensor& log_scale,
                               const IndexLossOptions& options = {});

/// Gradients of index_query, index_key, head_weight, head_bias (empty when absent) and log_scale.
using IndexLossGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

IndexLossGradients index_loss_dense_backward(const at::Tensor& grad, const at::Tensor& query,
                                             const at::Tensor& key, const at::Tensor& lse,
                                             const at::Tensor& index_query, const at::Tensor& index_key,
                                             const at::Tensor& head_weight,
                                             const std::optional<at::Tensor>& head_bias,
                                             const at::Tensor& log_scale, const IndexLossOptions& options);
IndexLossGradients index_loss_selected_backward(const at::Tensor& grad, const at::Tensor& query,
                                                const at::Tensor& key, const at::Tensor& indices,
                                                const at::Tensor& counts, const at::Tensor& index_query,
                                                const at::Tensor& index_key, const at::Tensor& head_weight,
                                                const std::optional<at::Tensor>& head_bias,
                                                const at::Tensor& log_scale, const IndexLossOptions& options);

}  // namespace gsa
