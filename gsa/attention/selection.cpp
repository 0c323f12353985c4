#include "gsa/attention/selection.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/bitwise_xor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/full.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/ops/selection/select_topk.h"

namespace gsa {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
/// Attention weights held at once by the oracle, over batch and heads.
constexpr int64_t kBlockElements = int64_t{1} << 23;

at::Tensor mix(const at::Tensor& x, uint64_t multiplier) {
  const at::Tensor folded = at::bitwise_xor(x, at::bitwise_right_shift(x, at::Scalar(int64_t{29})));
  return folded * static_cast<int64_t>(multiplier);
}

// A uniform number in [0, 1) for every (query, key), a hash of their positions: [Q,S].
at::Tensor random_scores(const SelectionOverride& selection, int64_t layer, const at::Tensor& position,
                         const at::Tensor& key_position) {
  const uint64_t start =
      (selection.seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(layer) + 1) * 0xD1B54A32D192ED03u;
  const at::Tensor row = mix(position.unsqueeze(1) + static_cast<int64_t>(start), 0xBF58476D1CE4E5B9u);
  const at::Tensor hash = mix(
      mix(row + key_position.unsqueeze(0) * static_cast<int64_t>(0x9E3779B97F4A7C15u), 0x94D049BB133111EBu),
      0xBF58476D1CE4E5B9u);
  const at::Tensor bits =
      at::bitwise_and(at::bitwise_right_shift(hash, at::Scalar(int64_t{33})), at::Scalar(int64_t{0xFFFFFF}));
  return bits.to(at::kFloat) / double{0x1000000};
}

// The query's own token first, then the first tokens, then the most recent: [Q,S].
at::Tensor window_scores(const SelectionOverride& selection, const at::Tensor& position,
                         const at::Tensor& key_position) {
  const double highest = 4.0 * static_cast<double>(key_position.size(0) + 1);
  const at::Tensor recency = key_position.to(at::kDouble);
  const at::Tensor score = at::where(key_position.lt(selection.first_tokens), highest / 2 - recency, recency);
  const at::Tensor own = key_position.unsqueeze(0).eq(position.unsqueeze(1));
  return at::where(own, at::full({}, highest, score.options()), score.unsqueeze(0));
}

// True attention joined over heads: query [B,Q,H,E], key [B,S,G,E] -> [B,Q,S].
at::Tensor oracle_scores(const SelectionOverride& selection, const at::Tensor& query, const at::Tensor& key,
                         const at::Tensor& future) {
  const int64_t batch = query.size(0), queries = query.size(1), groups = key.size(2), width = query.size(3);
  const auto wide = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor grouped = query.to(wide).view({batch, queries, groups, -1, width});
  const at::Tensor logits =
      at::einsum("bqgre,bsge->bgrqs", {grouped, key.to(wide)}) / std::sqrt(static_cast<double>(width));
  const at::Tensor weights = at::softmax(logits.masked_fill(future, kMinusInfinity), -1).flatten(1, 2);
  return selection.reduction == "max" ? weights.amax(1) : weights.mean(1);
}

}  // namespace

SelectionPolicy parse_selection_policy(std::string_view name) {
  if (name == "indexer") return SelectionPolicy::indexer;
  if (name == "random") return SelectionPolicy::random;
  if (name == "window") return SelectionPolicy::window;
  if (name == "oracle") return SelectionPolicy::oracle;
  fail("selection: expected indexer | random | window | oracle, got '", name, "'",
       suggestion(name, {"indexer", "random", "window", "oracle"}));
}

std::tuple<at::Tensor, at::Tensor> select_control(const SelectionOverride& selection, int64_t layer,
                                                  const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& budget, int64_t max_k) {
  TORCH_CHECK_VALUE(selection.reduction == "mean" || selection.reduction == "max",
                    "selection: reduction expected mean | max, got '", selection.reduction, "'");
  const at::NoGradGuard no_gradient;
  const int64_t batch = query.size(0), queries = query.size(1), keys = key.size(1), offset = keys - queries;
  const auto longs = query.options().dtype(at::kLong);
  const at::Tensor key_position = at::arange(keys, longs);
  const int64_t block =
      std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, batch * query.size(2) * keys));
  std::vector<at::Tensor> indices, counts;
  for (int64_t begin = 0; begin < queries; begin += block) {
    const int64_t end = std::min(begin + block, queries);
    const at::Tensor position = at::arange(offset + begin, offset + end, longs);
    const at::Tensor future = key_position.unsqueeze(0).gt(position.unsqueeze(1));
    at::Tensor scores;
    if (selection.policy == SelectionPolicy::oracle) {
      scores = oracle_scores(selection, query.slice(1, begin, end), key, future);
    } else if (selection.policy == SelectionPolicy::random) {
      scores = random_scores(selection, layer, position, key_position).unsqueeze(0);
    } else {
      scores = window_scores(selection, position, key_position).unsqueeze(0);
    }
    scores = scores.masked_fill(future, kMinusInfinity).expand({batch, end - begin, keys});
    auto [block_indices, block_counts] = select_topk(scores, budget.slice(1, begin, end), max_k);
    indices.push_back(block_indices);
    counts.push_back(block_counts);
  }
  return {at::cat(indices, 1), at::cat(counts, 1)};
}

}  // namespace gsa
