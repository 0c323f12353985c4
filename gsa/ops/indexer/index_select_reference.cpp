// Score and select in ATen, one block of queries at a time.

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gsa/ops/indexer/index_scores.h"
#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/selection/select_topk.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_select";
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
/// Scores held at once, over the batch.
constexpr int64_t kBlockElements = int64_t{1} << 23;

/// Everything one call needs in each of its blocks.
struct Selector {
  const at::Tensor& index_query;
  const at::Tensor& index_key;
  const at::Tensor& head_weight;
  const std::optional<at::Tensor>& head_bias;
  const std::optional<at::Tensor>& running_mean;
  const std::optional<at::Tensor>& log_scale;
  IndexSelectOptions options;
  Activation activation;
  BudgetRule rule;

  int64_t batch() const { return index_query.size(0); }
  int64_t queries() const { return index_query.size(1); }
  int64_t keys() const { return index_key.size(1); }
  int64_t first_position() const { return keys() - queries(); }
};

/// Population variance over the valid entries of each row, in two passes. The row's maximum is subtracted
/// first, so that equal scores have a variance of exactly zero.
at::Tensor row_variance(const at::Tensor& scores, const at::Tensor& valid) {
  const at::Tensor count = valid.sum(-1).clamp_min(1);
  const at::Tensor largest = scores.amax(-1, /*keepdim=*/true);
  const at::Tensor shifted = (scores - largest).masked_fill(~valid, 0);
  const at::Tensor mean = shifted.sum(-1) / count;
  const at::Tensor deviation = (shifted - mean.unsqueeze(-1)).masked_fill(~valid, 0);
  return deviation.square().sum(-1) / count;
}

/// Entropy of softmax(exp(log_scale) * score) over the valid entries, in nats.
at::Tensor row_entropy(const at::Tensor& scores, const at::Tensor& valid,
                       const std::optional<at::Tensor>& log_scale) {
  const at::Tensor scaled =
      log_scale ? scores * log_scale->to(scores.scalar_type()).exp().reshape({}) : scores;
  const at::Tensor log_p = scaled.masked_fill(~valid, kMinusInfinity).log_softmax(-1);
  return -(log_p.exp() * log_p).masked_fill(~valid, 0).sum(-1);
}

/// A fixed draw in [0.5, 1.5) for each position: the fractional part of position * golden ratio, in integers
/// so that every device agrees.
at::Tensor position_draw(const at::Tensor& position) {
  return ((position + 1) * 2654435769).bitwise_and(0xffffffff).to(at::kDouble) / 4294967296.0 + 0.5;
}

at::Tensor row_statistic(const Selector& call, const at::Tensor& scores, const at::Tensor& valid,
                         const at::Tensor& position) {
  switch (call.rule) {
    case BudgetRule::kEntropy:
      return row_entropy(scores, valid, call.log_scale);
    case BudgetRule::kMaxScore:
      return scores.masked_fill(~valid, kMinusInfinity).amax(-1);
    case BudgetRule::kRandom:
      return position_draw(position).to(scores.scalar_type()).expand({scores.size(0), scores.size(1)});
    default:
      return row_variance(scores, valid);
  }
}

/// k_t (int32) from the fp32 statistic. A zero variance or maximum is no confidence: k_max under the inverse
/// rules.
at::Tensor row_budget(const Selector& call, const at::Tensor& statistic, const at::Tensor& position) {
  const auto& options = call.options;
  const at::Tensor available = position + 1;
  at::Tensor wanted;
  if (call.rule == BudgetRule::kFixed) {
    wanted = at::full_like(statistic, static_cast<double>(options.k_base));
  } else {
    const at::Tensor mean = call.running_mean->to(statistic.options()).reshape({});
    const bool inverse = call.rule == BudgetRule::kInverse || call.rule == BudgetRule::kMaxScore;
    const at::Tensor ratio = inverse ? mean / statistic : statistic / mean;
    wanted =
        at::where(inverse ? statistic.le(0) : at::full_like(statistic, 0, at::kBool),
                  at::full_like(ratio, static_cast<double>(options.k_max)), (ratio * options.k_base).round());
    wanted = wanted.nan_to_num(options.k_base, options.k_max, options.k_min);
  }
  const at::Tensor clamped = wanted.clamp(options.k_min, options.k_max).to(at::kInt);
  return clamped.minimum(available.to(at::kInt));
}

/// The positions that a row holds whatever their scores: the first keep_first, and [end - keep_recent, end).
at::Tensor kept_mask(const IndexSelectOptions& options, const at::Tensor& key_position,
                     const at::Tensor& end) {
  return key_position.lt(options.keep_first)
      .logical_or(key_position.ge(end - options.keep_recent))
      .logical_and(key_position.lt(end));
}

/// Rows of single queries.
at::Tensor query_rows(const Selector& call, const at::Tensor& scores, const at::Tensor& budget,
                      const at::Tensor& position, const at::Tensor& key_position) {
  const at::Tensor kept = kept_mask(call.options, key_position, (position + 1).unsqueeze(-1));  // [Q,S]
  const at::Tensor rest = (budget - kept.sum(-1)).clamp_min(0).to(at::kInt);
  return topk_mask(scores.masked_fill(kept, kMinusInfinity), rest).logical_or(kept);
}

/// One row for the queries [begin, begin + Q) of a tile: shared keys before the tile's start, and the tile
/// itself.
at::Tensor tile_row(const Selector& call, const at::Tensor& scores, const at::Tensor& budget, int64_t begin,
                    const at::Tensor& key_position) {
  const int64_t start = begin + call.first_position(), end = start + scores.size(1);
  const at::Tensor before = key_position.lt(start);
  const at::Tensor kept = kept_mask(call.options, key_position, at::full({}, start, key_position.options()));
  const at::Tensor candidates = scores.masked_fill(kept.logical_or(~before), kMinusInfinity);  // [B,Q,S]
  const at::Tensor threshold = kth_score(candidates, budget).unsqueeze(-1);
  // A query without candidates has threshold -inf; NaN and absent scores must not survive the maximum.
  const at::Tensor normalised =
      (candidates - threshold)
          .nan_to_num(kMinusInfinity, std::numeric_limits<double>::infinity(), kMinusInfinity);
  const at::Tensor best = std::get<0>(normalised.max(1));  // [B,S]
  const at::Tensor shared = (budget.amax(1).to(at::kDouble) * call.options.tile_factor).round().to(at::kLong);
  const at::Tensor rest = (shared - kept.sum(-1)).clamp_min(0);
  const at::Tensor own = key_position.ge(start).logical_and(key_position.lt(end));
  return topk_mask(best, rest).logical_or(kept).logical_or(own).unsqueeze(1);
}

/// Mask [B,R,S] and statistic [B,Q] of the queries [begin, end): one row each, or one row in all.
std::pair<at::Tensor, at::Tensor> select_block(const Selector& call, int64_t begin, int64_t end) {
  const auto dtype = call.index_query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto longs = at::TensorOptions().dtype(at::kLong).device(call.index_query.device());
  const at::Tensor position = at::arange(begin, end, longs) + call.first_position();
  const at::Tensor key_position = at::arange(call.keys(), longs);
  at::Tensor scores = score_block(call.index_query, call.index_key, call.head_weight, call.head_bias,
                                  call.activation, begin, end, dtype);
  const at::Tensor valid = key_position.unsqueeze(0).le(position.unsqueeze(1)).logical_and(~scores.isnan());
  scores = scores.masked_fill(~valid, kMinusInfinity);
  const at::Tensor statistic = row_statistic(call, scores, valid, position).to(at::kFloat);
  const at::Tensor budget = row_budget(call, statistic, position);
  if (call.options.query_tile == 1)
    return {query_rows(call, scores, budget, position, key_position), statistic};
  return {tile_row(call, scores, budget, begin, key_position), statistic};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> index_select_reference(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean, int64_t k_base,
    int64_t k_min, int64_t k_max, c10::string_view budget, c10::string_view activation, int64_t query_tile,
    int64_t keep_first, int64_t keep_recent, double tile_factor, const std::optional<at::Tensor>& log_scale) {
  const Selector call{index_query,
                      index_key,
                      head_weight,
                      head_bias,
                      running_mean,
                      log_scale,
                      {k_base, k_min, k_max, std::string(budget), std::string(activation), query_tile,
                       keep_first, keep_recent, tile_factor},
                      parse_activation(kOp, activation),
                      parse_budget_rule(kOp, budget)};
  check_index_select(index_query, index_key, head_weight, head_bias, running_mean, call.options, log_scale);
  const int64_t capacity = selection_capacity(call.options);
  const int64_t fitting = kBlockElements / std::max<int64_t>(1, call.batch() * call.keys());
  const int64_t block = query_tile > 1 ? query_tile : std::max<int64_t>(1, fitting);
  std::vector<at::Tensor> indices, counts, statistics;
  for (int64_t begin = 0; begin < call.queries(); begin += block) {
    const auto [mask, statistic] = select_block(call, begin, std::min(begin + block, call.queries()));
    const auto [block_indices, block_counts] = mask_to_indices(mask, capacity);
    indices.push_back(block_indices);
    counts.push_back(block_counts);
    statistics.push_back(statistic);
  }
  if (indices.empty()) {
    const auto ints = index_query.options().dtype(at::kInt);
    return {at::empty({call.batch(), 0, capacity}, ints), at::empty({call.batch(), 0}, ints),
            at::empty({call.batch(), 0}, index_query.options().dtype(at::kFloat))};
  }
  return {at::cat(indices, 1), at::cat(counts, 1), at::cat(statistics, 1)};
}

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("index_select", index_select_reference);
}

}  // namespace gsa
