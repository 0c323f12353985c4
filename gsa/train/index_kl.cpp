#include "gsa/train/index_kl.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <optional>
#include <random>

#include "gsa/ops/index_loss/index_loss.h"

namespace gsa {
namespace {

/// Rows [B,R,...] of a selection as one row for each query of the run.
at::Tensor row_of_each(const at::Tensor& rows, int64_t query_tile, const QueryRun& run) {
  if (query_tile == 1) return rows.narrow(1, run.begin, run.length);
  const int64_t first = run.begin / query_tile, last = (run.begin + run.length - 1) / query_tile;
  const at::Tensor repeated = rows.narrow(1, first, last - first + 1).repeat_interleave(query_tile, 1);
  return repeated.narrow(1, run.begin - first * query_tile, run.length);
}

/// Losses [B,length] of one run of queries: keys after the run are cut off, so that the run ends where its
/// keys end.
at::Tensor run_loss(const LayerTrace& trace, const IndexerConfig& config, const QueryRun& run) {
  const int64_t offset = trace.key.size(1) - trace.query.size(1);  // keys of earlier calls (a cache)
  const int64_t keys = offset + run.begin + run.length;
  const auto queries = [&](const at::Tensor& x) { return x.narrow(1, run.begin, run.length); };
  const at::Tensor key = trace.key.narrow(1, 0, keys), index_key = trace.index_key.narrow(1, 0, keys);
  const auto bias = trace.head_bias.defined() ? std::optional(trace.head_bias) : std::nullopt;
  const IndexLossOptions options{.activation = config.activation,
                                 .scale = std::nullopt,
                                 .keep_first = config.keep_first,
                                 .keep_recent = config.keep_recent,
                                 .head_reduction = config.head_reduction};
  if (!trace.indices.defined()) {
    return index_loss_dense(queries(trace.query), key, queries(trace.lse), queries(trace.index_query),
                            index_key, queries(trace.head_weight), bias, trace.log_scale, options);
  }
  return index_loss_selected(queries(trace.query), key, row_of_each(trace.indices, trace.query_tile, run),
                             row_of_each(trace.counts, trace.query_tile, run), queries(trace.index_query),
                             index_key, queries(trace.head_weight), bias, trace.log_scale, options);
}

}  // namespace

std::vector<QueryRun> draw_queries(int64_t queries, int64_t total, int64_t run_length, uint64_t seed) {
  if (queries <= 0 || queries >= total || run_length >= total) return {{0, total}};
  const int64_t slots = total / run_length;
  const int64_t wanted = std::clamp<int64_t>((queries + run_length - 1) / run_length, 1, slots);
  std::mt19937_64 generator(seed);
  std::vector<QueryRun> runs;
  for (int64_t i = 0; i < wanted; ++i) {
    const int64_t low = i * slots / wanted, high = (i + 1) * slots / wanted;
    const int64_t slot = low + static_cast<int64_t>(generator() % static_cast<uint64_t>(high - low));
    runs.push_back({slot * run_length, run_length});
  }
  return runs;
}

at::Tensor index_kl(const LayerTrace& trace, const IndexerConfig& config, const std::vector<QueryRun>& runs) {
  at::Tensor sum;
  int64_t count = 0;
  for (const auto& run : runs) {
    const at::Tensor loss = run_loss(trace, config, run).sum();
    sum = sum.defined() ? sum + loss : loss;
    count += run.length * trace.query.size(0);
  }
  return sum / static_cast<double>(count);
}

at::Tensor uniform_index_kl(const LayerTrace& trace, const IndexerConfig& config,
                            const std::vector<QueryRun>& runs) {
  const c10::NoGradGuard no_grad;
  LayerTrace uniform = trace;
  uniform.log_scale = at::full_like(trace.log_scale, -100.0);  // exp(-100) * score: all logits equal
  return index_kl(uniform, config, runs);
}

}  // namespace gsa
