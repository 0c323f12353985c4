#include "gsa/eval/attention_metrics.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "gsa/base/error.h"

namespace gsa {
namespace {

constexpr int64_t kSinkWindow = 64;
constexpr double kSinkThreshold = 0.3;
constexpr int64_t kBlockElements = int64_t{1} << 22;

double attention_scale(const LayerTrace& trace) {
  return 1.0 / std::sqrt(static_cast<double>(trace.query.size(3)));
}

at::Tensor positions(const LayerTrace& trace, int64_t begin, int64_t end) {
  return at::arange(begin, end, at::TensorOptions().dtype(at::kLong).device(trace.query.device()));
}

/// True for keys that are not in the query's future: bool [end-begin, S].
at::Tensor visible_keys(const LayerTrace& trace, int64_t begin, int64_t end) {
  return positions(trace, 0, trace.key.size(1)).unsqueeze(0).le(positions(trace, begin, end).unsqueeze(1));
}

}  // namespace

at::Tensor mean_attention(const LayerTrace& trace, int64_t begin, int64_t end) {
  const int64_t batch = trace.query.size(0), heads = trace.query.size(2), dim = trace.query.size(3);
  const int64_t groups = trace.key.size(2), members = heads / groups, queries = end - begin;
  const at::Tensor query =
      trace.query.slice(1, begin, end).to(at::kFloat).view({batch, queries, groups, members, dim});
  const at::Tensor rows =
      query.transpose(1, 2).reshape({batch, groups, queries * members, dim}) * attention_scale(trace);
  const at::Tensor logits = at::matmul(rows, trace.key.to(at::kFloat).permute({0, 2, 3, 1}))
                                .view({batch, groups, queries, members, trace.key.size(1)});
  const at::Tensor hidden = visible_keys(trace, begin, end).logical_not().view({queries, 1, -1});
  return at::softmax(logits.masked_fill(hidden, -std::numeric_limits<float>::infinity()), -1)
      .mean(at::IntArrayRef({1, 3}));
}

at::Tensor selected_keys(const LayerTrace& trace, int64_t begin, int64_t end) {
  const int64_t keys = trace.key.size(1);
  const at::Tensor row = positions(trace, begin, end).floor_divide(trace.query_tile);
  const at::Tensor index = trace.indices.index_select(1, row).to(at::kLong);
  at::Tensor chosen = at::zeros({index.size(0), end - begin, keys + 1}, index.options().dtype(at::kBool));
  chosen.scatter_(2, index.masked_fill(index.lt(0), keys), 1);
  return chosen.slice(2, 0, keys).logical_and(visible_keys(trace, begin, end));
}

void LayerAccumulator::add(const LayerTrace& trace) {
  if (trace.key.size(1) != trace.query.size(1))
    fail("evaluation: expected whole sequences, got a trace that continues a cache");
  if (!trace.lse.defined()) fail("evaluation: expected a trace with lse (ForwardOptions::need_lse)");
  layer_ = trace.layer;
  max_activation_ = std::max(max_activation_, trace.residual.abs().max().to(at::kDouble).item<double>());
  add_first_token(trace);
  if (trace.indices.defined()) add_selection(trace);
}

void LayerAccumulator::add_first_token(const LayerTrace& trace) {
  const int64_t queries = trace.query.size(1), members = trace.query.size(2) / trace.key.size(2);
  if (queries < 2) return;
  const at::Tensor first_key =
      trace.key.select(1, 0).to(at::kFloat).repeat_interleave(members, 1);  // [B,H,E]
  const at::Tensor logits =
      at::einsum("bthe,bhe->bth", {trace.query.to(at::kFloat), first_key}) * attention_scale(trace);
  at::Tensor attention = (logits - trace.lse).exp();
  if (trace.indices.defined()) {
    // Indices ascend, so token 0 is selected exactly when it comes first.
    const at::Tensor row = positions(trace, 0, queries).floor_divide(trace.query_tile);
    attention = attention * trace.indices.select(2, 0).eq(0).index_select(1, row).unsqueeze(-1);
  }
  attention = attention.slice(1, 1);
  first_token_ += attention.sum(at::kDouble).item<double>();
  first_token_count_ += static_cast<double>(attention.numel());
  const at::Tensor start = attention.slice(1, 0, kSinkWindow).mean(1);  // [B,H]
  sinks_ += start.gt(kSinkThreshold).sum().item<double>();
  heads_ += static_cast<double>(start.numel());
}

void LayerAccumulator::add_selection(const LayerTrace& trace) {
  const int64_t batch = trace.query.size(0), queries = trace.query.size(1), heads = trace.query.size(2),
                keys = trace.key.size(1);
  const int64_t block = std::max<int64_t>(1, kBlockElements / (batch * heads * keys));
  for (int64_t begin = 0; begin < queries; begin += block) {
    const int64_t end = std::min(queries, begin + block);
    const at::Tensor chosen = selected_keys(trace, begin, end);
    const at::Tensor attention = mean_attention(trace, begin, end);
    const at::Tensor count = chosen.sum(2);  // [B,b]
    keys_ += count.sum().item<double>();
    queries_ += static_cast<double>(count.numel());

    const at::Tensor choosing = count.lt(positions(trace, begin, end) + 1);
    const int64_t largest = count.max().item<int64_t>();
    if (largest == 0) continue;
    const at::Tensor best = std::get<1>(at::topk(attention, largest, 2));  // best first
    const at::Tensor among_k = positions(trace, 0, largest).view({1, 1, -1}).lt(count.unsqueeze(-1));
    const at::Tensor found = chosen.gather(2, best).logical_and(among_k).sum(2);
    recall_ += (found.to(at::kDouble) / count.clamp_min(1) * choosing).sum().item<double>();
    choosing_ += choosing.sum().item<double>();

    const at::Tensor captured = attention * chosen;
    mass_ += (captured.sum(2) * choosing).sum(at::kDouble).item<double>();
    const at::Tensor rest = attention.slice(2, 1).sum(2);
    const at::Tensor has_rest = choosing.logical_and(rest.gt(0));
    mass_without_first_ +=
        (captured.slice(2, 1).sum(2) / rest.clamp_min(1e-30) * has_rest).sum(at::kDouble).item<double>();
    choosing_without_first_ += has_rest.sum().item<double>();
  }
}

LayerMetrics LayerAccumulator::metrics() const {
  LayerMetrics metrics;
  metrics.layer = layer_;
  const auto ratio = [](double sum, double count) {
    return count > 0 ? std::optional<double>(sum / count) : std::nullopt;
  };
  metrics.first_token_attention = ratio(first_token_, first_token_count_);
  metrics.sink_rate = ratio(sinks_, heads_);
  metrics.max_activation = max_activation_;
  metrics.mean_k = ratio(keys_, queries_);
  metrics.recall = ratio(recall_, choosing_);
  metrics.captured_mass = ratio(mass_, choosing_);
  metrics.captured_mass_without_first = ratio(mass_without_first_, choosing_without_first_);
  return metrics;
}

}  // namespace gsa
