#include "gsa/testing/attention_inputs.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numbers>
#include <tuple>

#include "gsa/ops/indexer/index_scores.h"

namespace gsa::testing {
namespace {

/// [B,T,J,I] fp32.
at::Tensor draw_queries(const AttentionShape& shape, const QueryProcess& process,
                        const at::TensorOptions& options) {
  const at::TensorOptions floats = options.dtype(at::kFloat);
  at::Tensor own = at::randn({shape.batch, shape.queries, shape.index_heads, shape.index_dim}, floats);
  if (process.fresh >= 1) return own;
  const int64_t corners = shape.queries / process.period + 2;
  const at::Tensor corner = at::randn({shape.batch, corners, shape.index_heads, shape.index_dim}, floats);
  const at::Tensor token = at::arange(shape.queries, options.dtype(at::kLong));
  const at::Tensor before = token.floor_divide(process.period);
  const at::Tensor angle = (token - before * process.period).to(at::kFloat) *
                           (std::numbers::pi / 2 / static_cast<double>(process.period));
  const at::Tensor turn = angle.reshape({1, -1, 1, 1});
  const at::Tensor shared =
      corner.index_select(1, before) * turn.cos() + corner.index_select(1, before + 1) * turn.sin();
  return shared * std::sqrt(1 - process.fresh) + own * std::sqrt(process.fresh);
}

/// Mean number of different keys in tiles of `tile` rows of a mask [Q,S], over k.
double mean_union(const at::Tensor& chosen, int64_t tile, int64_t k) {
  const at::Tensor any = chosen.unflatten(0, {-1, tile}).any(1);
  return any.sum().item<double>() / static_cast<double>(any.size(0) * k);
}

constexpr int64_t kSample = 64;

}  // namespace

AttentionInputs make_attention_inputs(const AttentionShape& shape, const QueryProcess& process,
                                      const at::TensorOptions& options, uint64_t seed) {
  at::manual_seed(seed);
  AttentionInputs inputs;
  inputs.query = at::randn({shape.batch, shape.queries, shape.heads, shape.dim}, options);
  inputs.key = at::randn({shape.batch, shape.keys, shape.groups, shape.dim}, options);
  inputs.value = at::randn({shape.batch, shape.keys, shape.groups, shape.dim}, options);
  inputs.index_query = draw_queries(shape, process, options).to(options.dtype());
  inputs.index_key = at::randn({shape.batch, shape.keys, shape.index_dim}, options);
  inputs.head_weight =
      (at::randn({shape.batch, shape.queries, shape.index_heads}, options.dtype(at::kFloat)) * 0.5).sigmoid();
  return inputs;
}

Overlap measure_overlap(const AttentionInputs& inputs, int64_t k) {
  const int64_t queries = inputs.index_query.size(1), keys = inputs.index_key.size(1);
  const at::Tensor scores = score_block(inputs.index_query.slice(0, 0, 1), inputs.index_key.slice(0, 0, 1),
                                        inputs.head_weight.slice(0, 0, 1), std::nullopt, Activation::kSigmoid,
                                        queries - kSample, queries, at::kFloat)[0];  // [64,S]
  k = std::min(k, keys);
  const at::Tensor best = std::get<1>(at::topk(scores, k, -1));
  const at::Tensor chosen =
      at::zeros(scores.sizes(), scores.options().dtype(at::kBool)).scatter_(1, best, true);
  return {mean_union(chosen, 16, k), mean_union(chosen, kSample, k)};
}

QueryProcess fit_overlap(const AttentionShape& shape, const Overlap& target, int64_t k,
                         const at::TensorOptions& options) {
  AttentionShape sample = shape;
  sample.batch = 1;
  sample.queries = kSample;
  sample.heads = sample.groups = sample.dim = 1;
  auto measured = [&](const QueryProcess& process) {
    return measure_overlap(make_attention_inputs(sample, process, options, 1), k);
  };
  QueryProcess best;
  double smallest = INFINITY;
  for (const int64_t period : {64, 128, 256, 512, 1024, 4096}) {
    double low = 0, high = 1;  // the union of 16 grows with the noise of their own
    for (int i = 0; i < 8; ++i) {
      const double middle = (low + high) / 2;
      (measured({middle, period}).union16 < target.union16 ? low : high) = middle;
    }
    const QueryProcess process{(low + high) / 2, period};
    const Overlap reached = measured(process);
    const double miss =
        std::abs(reached.union64 - target.union64) + std::abs(reached.union16 - target.union16);
    if (miss < smallest) std::tie(smallest, best) = std::make_tuple(miss, process);
  }
  return best;
}

}  // namespace gsa::testing
