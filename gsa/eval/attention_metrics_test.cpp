#include "gsa/eval/attention_metrics.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "gsa/base/error.h"

namespace gsa {
namespace {

/// One sequence whose heads attend in proportion to fixed weights: head h's dense attention at query t is
/// weights[h][s] / sum of weights[h][0..t]. One key head per query head, dimension 1, query 1, key log w.
LayerTrace trace_with_weights(const std::vector<std::vector<double>>& weights) {
  const int64_t heads = static_cast<int64_t>(weights.size()),
                length = static_cast<int64_t>(weights[0].size());
  LayerTrace trace;
  trace.query = at::ones({1, length, heads, 1}, at::kFloat);
  trace.key = at::empty({1, length, heads, 1}, at::kFloat);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t s = 0; s < length; ++s) trace.key[0][s][h][0] = std::log(weights[h][s]);
  }
  trace.residual = at::zeros({1, length, 2}, at::kFloat);
  trace.lse = trace.key.squeeze(3).to(at::kDouble).logcumsumexp(1).to(at::kFloat);  // dense
  return trace;
}

/// Rows of selected positions, padded with -1, and the lse over them.
void select(LayerTrace& trace, const std::vector<std::vector<int>>& rows) {
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row.size());
  const int64_t count = static_cast<int64_t>(rows.size());
  trace.indices = at::full({1, count, static_cast<int64_t>(width)}, -1, at::kInt);
  trace.counts = at::zeros({1, count}, at::kInt);
  for (int64_t r = 0; r < count; ++r) {
    for (size_t i = 0; i < rows[r].size(); ++i) trace.indices[0][r][static_cast<int64_t>(i)] = rows[r][i];
    trace.counts[0][r] = static_cast<int>(rows[r].size());
  }
  const at::Tensor chosen = selected_keys(trace, 0, trace.query.size(1)).squeeze(0);  // [T,S]
  for (int64_t h = 0; h < trace.query.size(2); ++h) {
    const at::Tensor weight = trace.key.select(0, 0).select(1, h).squeeze(1).exp();
    trace.lse.select(0, 0).select(1, h).copy_((chosen * weight.unsqueeze(0)).sum(1).log());
  }
}

LayerMetrics metrics_of(const LayerTrace& trace) {
  LayerAccumulator accumulator;
  accumulator.add(trace);
  return accumulator.metrics();
}

TEST(AttentionMetrics, FirstTokenAttentionOfUniformAttention) {
  const LayerMetrics metrics = metrics_of(trace_with_weights({{1, 1, 1}}));
  EXPECT_NEAR(*metrics.first_token_attention, (1.0 / 2 + 1.0 / 3) / 2, 1e-6);  // queries 1 and 2
  EXPECT_FALSE(metrics.recall);
  EXPECT_FALSE(metrics.mean_k);
}

TEST(AttentionMetrics, FirstTokenAttentionIsZeroWhereItIsNotSelected) {
  LayerTrace trace = trace_with_weights({{3, 1, 1}});
  select(trace, {{0}, {0, 1}, {1, 2}});
  EXPECT_NEAR(*metrics_of(trace).first_token_attention, (3.0 / 4 + 0) / 2, 1e-6);
}

TEST(AttentionMetrics, SinkRateCountsHeads) {
  std::vector<double> sink(70, 1.0), even(70, 1.0);
  sink[0] = 1000;
  EXPECT_DOUBLE_EQ(*metrics_of(trace_with_weights({sink, even})).sink_rate, 0.5);
  EXPECT_DOUBLE_EQ(*metrics_of(trace_with_weights({even, even})).sink_rate, 0.0);
}

TEST(AttentionMetrics, SinkRateLooksAtTheFirst64Queries) {
  std::vector<double> late(400, 1e-6);
  late[0] = 1;
  for (size_t s = 65; s < late.size(); ++s)
    late[s] = 1e6;  // token 0 has everything for queries 1 .. 64, nothing afterwards
  const LayerMetrics metrics = metrics_of(trace_with_weights({late}));
  EXPECT_DOUBLE_EQ(*metrics.sink_rate, 1.0);
  EXPECT_LT(*metrics.first_token_attention, 0.2);
}

TEST(AttentionMetrics, RecallAndCapturedMassByHand) {
  // Query 3 attends .6 .1 .2 .1; it selects 0 and 3, the best two are 0 and 2. Queries 0 and 1 see no more
  // than they select; query 2 attends 6/9 1/9 2/9 and selects the best two.
  LayerTrace trace = trace_with_weights({{6, 1, 2, 1}});
  select(trace, {{0}, {0, 1}, {0, 2}, {0, 3}});
  const LayerMetrics metrics = metrics_of(trace);
  EXPECT_NEAR(*metrics.recall, (1.0 + 0.5) / 2, 1e-6);
  EXPECT_NEAR(*metrics.captured_mass, (8.0 / 9 + 0.7) / 2, 1e-6);
  EXPECT_NEAR(*metrics.captured_mass_without_first, (2.0 / 3 + 0.1 / 0.4) / 2, 1e-6);
  EXPECT_DOUBLE_EQ(*metrics.mean_k, (1 + 2 + 2 + 2) / 4.0);
}

TEST(AttentionMetrics, TheBestKeysAreThoseOfTheMeanOverHeads) {
  // Query 2: heads (.8 .1 .1) and (0 .4 .6) have mean (.4 .25 .35).
  LayerTrace trace = trace_with_weights({{8, 1, 1}, {1e-6, 4, 6}});
  select(trace, {{0}, {0, 1}, {0, 1}});
  const LayerMetrics metrics = metrics_of(trace);
  EXPECT_NEAR(*metrics.recall, 0.5, 1e-6);
  EXPECT_NEAR(*metrics.captured_mass, 0.65, 1e-5);
}

TEST(AttentionMetrics, SelectingEverythingLeavesNothingToMeasure) {
  LayerTrace trace = trace_with_weights({{6, 1, 2}});
  select(trace, {{0}, {0, 1}, {0, 1, 2}});
  const LayerMetrics metrics = metrics_of(trace);
  EXPECT_FALSE(metrics.recall);
  EXPECT_FALSE(metrics.captured_mass);
  EXPECT_DOUBLE_EQ(*metrics.mean_k, 2.0);
}

TEST(AttentionMetrics, ASharedRowServesItsQueriesUpToTheirOwnPosition) {
  LayerTrace trace = trace_with_weights({{6, 1, 2, 1}});
  trace.query_tile = 2;
  select(trace, {{0, 1}, {0, 2, 3}});
  const LayerMetrics metrics = metrics_of(trace);
  EXPECT_DOUBLE_EQ(*metrics.mean_k, (1 + 2 + 2 + 3) / 4.0);
  EXPECT_NEAR(*metrics.captured_mass, (8.0 / 9 + 0.9) / 2, 1e-6);
}

TEST(AttentionMetrics, MaxActivationIsTheLargestMagnitude) {
  LayerTrace trace = trace_with_weights({{1, 1}});
  trace.residual[0][1][0] = -7.5;
  trace.residual[0][0][1] = 3;
  LayerAccumulator accumulator;
  accumulator.add(trace);
  trace.residual = at::zeros_like(trace.residual);
  accumulator.add(trace);
  EXPECT_DOUBLE_EQ(accumulator.metrics().max_activation, 7.5);
}

TEST(AttentionMetrics, BlocksDoNotChangeTheNumbers) {
  at::manual_seed(1);
  LayerTrace trace;  // 4 * 1100 * 1100 logits: more than one block
  trace.query = at::randn({1, 1100, 4, 8});
  trace.key = at::randn({1, 1100, 2, 8});
  trace.residual = at::zeros({1, 1100, 2});
  trace.lse = at::zeros({1, 1100, 4});
  trace.indices = at::arange(16, at::kInt).view({1, 1, 16}).expand({1, 1100, 16}).contiguous();
  trace.counts = at::full({1, 1100}, 16, at::kInt);
  const at::Tensor attention =
      mean_attention(trace, 0, 1100)[0].slice(0, 16);  // the queries that leave keys out
  const LayerMetrics metrics = metrics_of(trace);
  EXPECT_NEAR(*metrics.captured_mass, attention.slice(1, 0, 16).sum(1).mean().item<double>(), 1e-5);
}

TEST(AttentionMetrics, NeedsLseAndWholeSequences) {
  LayerTrace trace = trace_with_weights({{1, 1}});
  LayerAccumulator accumulator;
  trace.query = trace.query.slice(1, 1);
  EXPECT_THROW(accumulator.add(trace), Error);
  trace = trace_with_weights({{1, 1}});
  trace.lse = at::Tensor();
  EXPECT_THROW(accumulator.add(trace), Error);
}

}  // namespace
}  // namespace gsa
