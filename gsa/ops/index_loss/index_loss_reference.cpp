// The clear version in ATen: every dtype and device without a kernel of its own.
//
// A block of queries looks at N key columns: one range of positions for the whole block, or, when the
// selection is short against the sequence, each query's own selected keys, gathered. What follows the logits
// is the same for both.

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "gsa/ops/index_loss/index_loss.h"
#include "gsa/ops/index_loss/index_loss_problem.h"

namespace gsa {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kBlockElements = int64_t{1} << 20;  // of one temporary: small enough for a CPU's caches
constexpr int64_t kGatherRatio = 4;  // gather when a row's keys are this many times fewer than the keys

/// Queries [begin, end) and the key columns they look at.
struct Block {
  int64_t begin = 0, end = 0;
  int64_t first = 0, columns = 0;  // columns are the positions first .. first + columns - 1, unless gathered
  at::Tensor rows;                 // gathered: rows of the flattened [B*S] keys, int64 [B*b*columns]
  at::Tensor visible;              // bool [B,b,N] on a selection: what the attention probabilities run over
  at::Tensor candidate;            // bool [B or 1,b,N]: columns that are not kept anyway

  bool gathered() const { return rows.defined(); }
  int64_t queries() const { return end - begin; }
};

bool gathers(const IndexLossProblem& problem) {
  return problem.selected() && problem.indices.size(2) * kGatherRatio < problem.keys();
}

int64_t block_queries(const IndexLossProblem& problem) {
  const int64_t logits = problem.heads() + 2 * problem.index_heads();
  const int64_t vectors = problem.key_heads() * problem.key.size(3) + problem.index_key.size(2);
  const bool gather = gathers(problem);
  const int64_t per_query =
      problem.batch() * (gather ? problem.indices.size(2) * (logits + vectors) : problem.keys() * logits);
  return std::clamp<int64_t>(kBlockElements / std::max<int64_t>(per_query, 1), gather ? 1 : 16,
                             std::max<int64_t>(problem.queries(), 16));
}

Block make_block(const IndexLossProblem& problem, int64_t begin) {
  Block block;
  block.begin = begin;
  block.end = std::min(problem.queries(), begin + block_queries(problem));
  const int64_t offset = problem.keys() - problem.queries();  // query t sits at position t + offset
  const auto options = at::TensorOptions().dtype(at::kLong).device(problem.query.device());
  const at::Tensor position = at::arange(block.begin + offset, block.end + offset, options).view({1, -1, 1});
  at::Tensor column;
  if (gathers(problem)) {
    const at::Tensor index = problem.indices.slice(1, block.begin, block.end).to(at::kLong);  // [B,b,K]
    block.visible = index.ge(0).logical_and(index.le(position));
    block.columns = index.size(2);
    const at::Tensor sequence = at::arange(problem.batch(), options).view({-1, 1, 1}) * problem.keys();
    block.rows = (index.clamp(0, problem.keys() - 1) + sequence).reshape(-1);
    column = index;
  } else if (problem.selected()) {
    block.columns = block.end + offset;
    column = at::arange(block.columns, options).view({1, 1, -1});
    const at::Tensor index = problem.indices.slice(1, block.begin, block.end).to(at::kLong);
    const at::Tensor outside = index.lt(0).logical_or(index.ge(block.columns));
    at::Tensor chosen =
        at::zeros({problem.batch(), block.queries(), block.columns + 1}, options.dtype(at::kBool));
    chosen.scatter_(2, index.masked_fill(outside, block.columns), 1);
    block.visible = chosen.slice(2, 0, block.columns).logical_and(column.le(position));
  } else {  // the kept columns at both ends need not be looked at
    block.first = std::min(problem.keep_first, problem.keys());
    block.columns = std::max<int64_t>(0, block.end + offset - problem.keep_recent - block.first);
    column = at::arange(block.first, block.first + block.columns, options).view({1, 1, -1});
  }
  block.candidate = column.ge(problem.keep_first).logical_and(column.le(position - problem.keep_recent));
  if (block.visible.defined()) block.candidate = block.candidate.logical_and(block.visible);
  return block;
}

/// The block's keys of `keys` [B,S,...]: the range [B,N,...], or gathered [B,b,N,...].
at::Tensor block_keys(const at::Tensor& keys, const Block& block, at::ScalarType dtype) {
  if (!block.gathered()) return keys.slice(1, block.first, block.first + block.columns).to(dtype);
  const int64_t width = keys.numel() / (keys.size(0) * keys.size(1));
  auto sizes = keys.sizes().vec();
  sizes[1] = block.queries();
  sizes.insert(sizes.begin() + 2, block.columns);
  return at::index_select(keys.reshape({-1, width}), 0, block.rows).view(sizes).to(dtype);
}

/// Sum (standing for the mean: it is renormalised) or maximum over heads of the attention probabilities,
/// candidates only: [B,b,N].
at::Tensor attention_over_heads(const IndexLossProblem& problem, const Block& block) {
  const int64_t batch = problem.batch(), queries = block.queries(), groups = problem.key_heads();
  const int64_t members = problem.heads() / groups, dim = problem.query.size(3);
  const at::Tensor query = problem.query.slice(1, block.begin, block.end)
                               .to(problem.dtype)
                               .view({batch, queries, groups, members, dim}) *
                           problem.scale;
  const at::Tensor key = block_keys(problem.key, block, problem.dtype);
  at::Tensor logits;  // gathered [B,b,G,M,N], else [B,G,b,M,N]
  if (block.gathered()) {
    logits = at::matmul(query, key.permute({0, 1, 3, 4, 2}));
  } else {
    logits = at::matmul(query.transpose(1, 2).reshape({batch, groups, queries * members, dim}),
                        key.permute({0, 2, 3, 1}))
                 .view({batch, groups, queries, members, block.columns});
  }
  const int64_t query_dim = block.gathered() ? 1 : 2, group_dim = 3 - query_dim;
  at::Tensor probabilities;
  if (problem.selected()) {
    const at::Tensor hidden = block.visible.logical_not().unsqueeze(group_dim).unsqueeze(3);
    probabilities = at::softmax(logits.masked_fill_(hidden, -kInfinity), -1);
  } else {
    const at::Tensor lse = problem.lse.slice(1, block.begin, block.end)
                               .to(problem.dtype)
                               .view({batch, queries, groups, members});
    probabilities = logits.sub_(lse.transpose(1, query_dim).unsqueeze(-1)).exp_();
  }
  const at::Tensor reduced = problem.maximum ? probabilities.amax({group_dim, 3})
                                             : probabilities.sum(at::IntArrayRef({group_dim, 3}));
  return reduced.masked_fill(block.candidate.logical_not(), 0);
}

/// The target p_t [B,b,N]: candidates only, each row's sum is one, or zero where no attention falls on any
/// candidate.
at::Tensor target(const IndexLossProblem& problem, const Block& block) {
  const at::Tensor weights = attention_over_heads(problem, block);
  const at::Tensor total = weights.sum(-1, /*keepdim=*/true);
  return weights / total.masked_fill(total.eq(0), 1);
}

/// Logits of the index heads [B,b,J,N] from the block's index keys.
at::Tensor index_logits(const IndexLossProblem& problem, const Block& block, const at::Tensor& index_key) {
  const int64_t batch = problem.batch(), queries = block.queries(), heads = problem.index_heads(),
                dim = problem.index_query.size(3);
  const at::Tensor query = problem.index_query.slice(1, block.begin, block.end).to(problem.dtype) /
                           std::sqrt(static_cast<double>(dim));
  at::Tensor logits;
  if (block.gathered()) {
    logits = at::matmul(query, index_key.transpose(2, 3));
  } else {
    logits = at::matmul(query.reshape({batch, queries * heads, dim}), index_key.transpose(1, 2))
                 .view({batch, queries, heads, block.columns});
  }
  if (problem.head_bias) logits.add_(problem.head_bias->to(problem.dtype).view({heads, 1}));
  return logits;
}

/// log softmax of `scores` over the candidates; 0 elsewhere.
at::Tensor log_index_distribution(const at::Tensor& scores, const Block& block) {
  const at::Tensor excluded = block.candidate.logical_not();
  return at::log_softmax(scores.masked_fill(excluded, -kInfinity), -1).masked_fill(excluded, 0);
}

at::Tensor block_head_weight(const IndexLossProblem& problem, const Block& block) {
  return problem.head_weight.slice(1, block.begin, block.end).to(problem.dtype).unsqueeze(-1);  // [B,b,J,1]
}

at::Tensor loss(const IndexLossProblem& problem) {
  at::Tensor result =
      at::zeros({problem.batch(), problem.queries()}, problem.index_query.options().dtype(problem.dtype));
  if (result.is_meta()) return result;
  const at::Tensor sharpness = problem.log_scale.to(problem.dtype).reshape({}).exp();
  for (int64_t begin = 0; begin < problem.queries();) {
    const Block block = make_block(problem, begin);
    if (block.columns > 0) {
      const at::Tensor logits =
          index_logits(problem, block, block_keys(problem.index_key, block, problem.dtype));
      const at::Tensor scores =
          (activate(logits, problem.activation) * block_head_weight(problem, block)).sum(2) * sharpness;
      const at::Tensor p = target(problem, block);
      result.slice(1, block.begin, block.end)
          .copy_((at::xlogy(p, p) - p * log_index_distribution(scores, block)).sum(-1));
    }
    begin = block.end;
  }
  return result;
}

/// Gradient accumulators in the dtype of the computation.
struct Accumulators {
  at::Tensor query, key, weight, bias, log_scale;
};

/// Adds a block's share: dz = grad * (softmax(z) - p) for z = exp(log_scale) * score, then back through the
/// scores.
void accumulate(const IndexLossProblem& problem, const Block& block, const at::Tensor& grad,
                const at::Tensor& sharpness, Accumulators& sums) {
  const int64_t batch = problem.batch(), queries = block.queries(), heads = problem.index_heads(),
                dim = problem.index_query.size(3);
  const double inverse_root = 1.0 / std::sqrt(static_cast<double>(dim));
  const at::Tensor index_key = block_keys(problem.index_key, block, problem.dtype);
  const at::Tensor logits = index_logits(problem, block, index_key);
  const at::Tensor active = activate(logits, problem.activation);
  const at::Tensor weight = block_head_weight(problem, block);
  const at::Tensor scores = (active * weight).sum(2) * sharpness;
  const at::Tensor p = target(problem, block);
  // A row without attention on any candidate has loss 0, whatever the indexer says: no gradient.
  const at::Tensor row_grad =
      grad.slice(1, block.begin, block.end).to(problem.dtype).unsqueeze(-1) * p.sum(-1, true).ne(0);
  const at::Tensor grad_z = (log_index_distribution(scores, block).exp_() - p) * block.candidate * row_grad;
  sums.log_scale.add_((grad_z * scores).sum());
  const at::Tensor grad_score = (grad_z * sharpness).unsqueeze(2);  // [B,b,1,N]
  sums.weight.slice(1, block.begin, block.end).copy_((active * grad_score).sum(-1));
  const at::Tensor grad_logits =
      activation_derivative(logits, problem.activation).mul_(grad_score).mul_(weight);  // [B,b,J,N]
  if (problem.head_bias) sums.bias.add_(grad_logits.sum(at::IntArrayRef({0, 1, 3})));
  const at::Tensor query = problem.index_query.slice(1, block.begin, block.end).to(problem.dtype);
  at::Tensor grad_query = sums.query.slice(1, block.begin, block.end);
  if (block.gathered()) {
    grad_query.copy_(at::matmul(grad_logits, index_key) * inverse_root);
    const at::Tensor grad_key = at::matmul(grad_logits.transpose(2, 3), query) * inverse_root;  // [B,b,N,I]
    sums.key.view({-1, dim}).index_add_(0, block.rows, grad_key.reshape({-1, dim}));
  } else {
    const at::Tensor flat = grad_logits.view({batch, queries * heads, block.columns});
    grad_query.copy_((at::matmul(flat, index_key) * inverse_root).view({batch, queries, heads, dim}));
    const at::Tensor grad_key =
        at::matmul(flat.transpose(1, 2), query.reshape({batch, queries * heads, dim}));
    sums.key.slice(1, block.first, block.first + block.columns).add_(grad_key, inverse_root);
  }
}

IndexLossGradients gradients(const IndexLossProblem& problem, const at::Tensor& grad) {
  const auto zeros = [&](const at::Tensor& like) {
    return at::zeros(like.sizes(),
                     like.options().dtype(problem.dtype).memory_format(at::MemoryFormat::Contiguous));
  };
  Accumulators sums{
      zeros(problem.index_query), zeros(problem.index_key), zeros(problem.head_weight),
      problem.head_bias ? zeros(*problem.head_bias) : at::zeros({0}, problem.index_query.options()),
      zeros(problem.log_scale)};
  if (!grad.is_meta()) {
    const at::Tensor sharpness = problem.log_scale.to(problem.dtype).reshape({}).exp();
    for (int64_t begin = 0; begin < problem.queries();) {
      const Block block = make_block(problem, begin);
      if (block.columns > 0) accumulate(problem, block, grad, sharpness, sums);
      begin = block.end;
    }
  }
  return {sums.query.to(problem.index_query.scalar_type()), sums.key.to(problem.index_key.scalar_type()),
          sums.weight.to(problem.head_weight.scalar_type()),
          problem.head_bias ? sums.bias.to(problem.head_bias->scalar_type()) : sums.bias,
          sums.log_scale.to(problem.log_scale.scalar_type())};
}

at::Tensor dense(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                 const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
                 const OptionalTensor& head_bias, const at::Tensor& log_scale, c10::string_view activation,
                 std::optional<double> scale, int64_t keep_first, int64_t keep_recent,
                 c10::string_view head_reduction) {
  return loss(dense_problem(query, key, lse, index_query, index_key, head_weight, head_bias, log_scale,
                            activation, scale, keep_first, keep_recent, head_reduction));
}

at::Tensor selected(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                    const at::Tensor& counts, const at::Tensor& index_query, const at::Tensor& index_key,
                    const at::Tensor& head_weight, const OptionalTensor& head_bias,
                    const at::Tensor& log_scale, c10::string_view activation, std::optional<double> scale,
                    int64_t keep_first, int64_t keep_recent, c10::string_view head_reduction) {
  return loss(selected_problem(query, key, indices, counts, index_query, index_key, head_weight, head_bias,
                               log_scale, activation, scale, keep_first, keep_recent, head_reduction));
}

IndexLossGradients dense_backward(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& lse, const at::Tensor& index_query,
                                  const at::Tensor& index_key, const at::Tensor& head_weight,
                                  const OptionalTensor& head_bias, const at::Tensor& log_scale,
                                  c10::string_view activation, std::optional<double> scale,
                                  int64_t keep_first, int64_t keep_recent, c10::string_view head_reduction) {
  return gradients(dense_problem(query, key, lse, index_query, index_key, head_weight, head_bias, log_scale,
                                 activation, scale, keep_first, keep_recent, head_reduction),
                   grad);
}

IndexLossGradients selected_backward(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& indices, const at::Tensor& counts,
                                     const at::Tensor& index_query, const at::Tensor& index_key,
                                     const at::Tensor& head_weight, const OptionalTensor& head_bias,
                                     const at::Tensor& log_scale, c10::string_view activation,
                                     std::optional<double> scale, int64_t keep_first, int64_t keep_recent,
                                     c10::string_view head_reduction) {
  return gradients(
      selected_problem(query, key, indices, counts, index_query, index_key, head_weight, head_bias, log_scale,
                       activation, scale, keep_first, keep_recent, head_reduction),
      grad);
}

}  // namespace

// CompositeExplicitAutograd covers meta tensors too: loss() and gradients() return there before they compute.
TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("index_loss_dense", dense);
  library.impl("index_loss_selected", selected);
  library.impl("index_loss_dense_backward", dense_backward);
  library.impl("index_loss_selected_backward", selected_backward);
}

}  // namespace gsa
