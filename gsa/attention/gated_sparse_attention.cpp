#include "gsa/attention/gated_sparse_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <vector>

#include "gsa/attention/dense_attention.h"
#include "gsa/base/error.h"
#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"
#include "gsa/ops/sparse_decode/sparse_decode.h"

namespace gsa {
namespace {

/// Queries of a long prefill that go through selection and attention together. On a GPU as many as the
/// selection works on at once on 132 multiprocessors, three tiles of 32 on each.
int64_t default_query_chunk(const at::Device& device) {
  return device.is_cpu() ? 2048 : 132 * 3 * 32;
}

std::optional<at::Tensor> present(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// k_max decides how wide a selection's rows are, so it is no larger than what any query can use.
IndexSelectOptions select_options(const IndexerConfig& indexer, const BudgetConfig& budget, int64_t keys) {
  const int64_t usable = budget.rule == "fixed" ? budget.k_base : budget.k_max;
  return {budget.k_base,      budget.k_min,        std::max(budget.k_min, std::min(usable, keys)),
          budget.rule,        indexer.activation,  indexer.query_tile,
          indexer.keep_first, indexer.keep_recent, indexer.tile_factor};
}

// min(k, visible keys) for every query: int32 [B,T].
at::Tensor constant_budget(int64_t k, const at::Tensor& query, int64_t keys) {
  const int64_t queries = query.size(1), offset = keys - queries;
  const at::Tensor visible = at::arange(offset + 1, keys + 1, query.options().dtype(at::kInt));
  return visible.clamp_max(k).unsqueeze(0).expand({query.size(0), queries}).contiguous();
}

}  // namespace

GatedSparseAttention::GatedSparseAttention(const AttentionShape& layer_shape, const GsaConfig& layer_config)
    : shape(layer_shape),
      config(layer_config),
      q_proj(shape.hidden_size, shape.heads * shape.head_dim, shape.bias),
      k_proj(shape.hidden_size, shape.key_value_heads * shape.head_dim, shape.bias),
      v_proj(shape.hidden_size, shape.key_value_heads * shape.head_dim, shape.bias),
      o_proj(shape.heads * shape.head_dim, shape.hidden_size, shape.output_bias) {
  if (config.gates.value_gate)
    value_gate = Linear(shape.hidden_size, shape.key_value_heads * shape.head_dim, true);
  if (config.gates.output_gate) output_gate = Linear(shape.hidden_size, shape.heads * shape.head_dim, true);
  if (config.indexer) indexer.emplace(shape.hidden_size, *config.indexer);
  budget = Budget(config.budget);
}

at::Tensor GatedSparseAttention::operator()(const at::Tensor& h, const AttentionContext& context) {
  const int64_t batch = h.size(0), tokens = h.size(1);
  const auto heads = [&](const at::Tensor& x) { return x.view({batch, tokens, -1, shape.head_dim}); };

  // 1-3: projections with positions, gated values, index vectors (of a detached h). With a cache positions
  // and gate are one step on the way there.
  at::Tensor query = heads(q_proj(h)), key = heads(k_proj(h)), value = heads(v_proj(h));
  IndexVectors index;
  if (context.cache != nullptr) {
    if (indexer) index = indexer->project(h);
    append(h, query, key, value, index, context);
    key = context.cache->key();
    value = context.cache->value();
    index.key = context.cache->index_key();
  } else {
    query = apply_rotary(query, context.rotary);
    key = apply_rotary(key, context.rotary);
    value = gate(value, value_gate, h);
    if (indexer && (context.mode == AttentionMode::sparse || context.trace != nullptr))
      index = (*indexer)(h, context.index_rotary);
  }

  // 4-6: budget, selection, attention over what was selected.
  if (context.trace != nullptr) start_trace(h, query, key, value, index, *context.trace);
  const at::Tensor attention = attends_densely(key.size(1), context)
                                   ? attend_densely(query, key, value, context)
                                   : attend_selected(query, key, value, index, context);
  // 7: output gate, output projection.
  return o_proj(gate(attention.reshape({batch, tokens, -1}), output_gate, h));
}

at::Tensor GatedSparseAttention::gate(const at::Tensor& x, const Linear& gate, const at::Tensor& h) const {
  if (!gate.weight.defined()) return x;
  const at::Tensor gated = sigmoid_gate(x, gate(h).view(x.sizes()));
  return config.gates.identity ? gated * 2 : gated;
}

void GatedSparseAttention::append(const at::Tensor& h, const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const IndexVectors& index,
                                  const AttentionContext& context) const {
  const NewTokens tokens{
      .query = query,
      .index_query = index.query,
      .key = key,
      .value = value,
      .value_gate = config.gates.value_gate ? value_gate(h).view(value.sizes()) : at::Tensor(),
      .index_key = index.key,
      .cos = context.rotary.cos,
      .sin = context.rotary.sin,
      .index_cos = context.index_rotary.cos,
      .index_sin = context.index_rotary.sin,
      .gate_scale = config.gates.identity ? 2.0 : 1.0,
  };
  context.cache->append(tokens, indexer && indexer->has_float8_keys());
}

bool GatedSparseAttention::attends_densely(int64_t keys, const AttentionContext& context) const {
  if (context.mode == AttentionMode::dense) return true;
  if (context.selection.policy == SelectionPolicy::indexer) {
    if (!indexer) return true;
    // Every query would select all it sees, and nobody asks what was selected: the same sum, sooner.
    const bool asked = context.trace != nullptr || context.update_statistics;
    const bool known = config.budget.rule == "fixed" || budget.is_set();
    return !asked && known && smallest_budget(config.budget) >= keys;
  }
  if (!indexer && !context.selection.k) {
    fail("selection: a model without an indexer has no budget; expected a number of keys k");
  }
  return false;
}

void GatedSparseAttention::start_trace(const at::Tensor& h, const at::Tensor& query, const at::Tensor& key,
                                       const at::Tensor& value, const IndexVectors& index,
                                       LayerTrace& trace) const {
  trace.input = h.detach();
  trace.query = query.detach();
  trace.key = key.detach();
  trace.value = value.detach();
  if (!indexer) return;
  trace.index_query = index.query;
  trace.index_key = index.key.to(index.query.scalar_type());  // a cache's may be FP8
  trace.head_weight = index.head_weight;
  trace.head_bias = indexer->head_bias;
  trace.log_scale = indexer->log_scale;
}

at::Tensor GatedSparseAttention::attend_densely(const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value,
                                                const AttentionContext& context) const {
  const bool need_lse = context.need_lse && context.trace != nullptr;
  auto [out, lse] = dense_attention(query, key, value, need_lse);
  if (need_lse) context.trace->lse = lse.detach();
  return out;
}

at::Tensor GatedSparseAttention::attend_selected(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, const IndexVectors& index,
                                                 const AttentionContext& context) {
  const int64_t queries = query.size(1), offset = key.size(1) - queries;
  // Selections take K numbers a query: a long prefill goes through them a chunk at a time.
  // Shared rows are for prefill: a lone query has its own.
  const int64_t tile = indexer && queries >= indexer->config.query_tile ? indexer->config.query_tile : 1;
  const int64_t wanted = context.query_chunk > 0 ? context.query_chunk : default_query_chunk(query.device());
  const int64_t chunk = (std::max(wanted, tile) + tile - 1) / tile * tile;
  const bool trains = query.requires_grad() || key.requires_grad() || value.requires_grad();
  const bool whole = trains || context.trace != nullptr || queries <= chunk;
  // A new token that nobody asks what it selected: one op, which may be one kernel.
  if (queries == 1 && !trains && context.trace == nullptr && !context.update_statistics &&
      context.selection.policy == SelectionPolicy::indexer && config.budget.rule == "fixed") {
    IndexSelectOptions options = select_options(indexer->config, config.budget, key.size(1));
    options.query_tile = 1;
    return sparse_decode(query, key, value, index.query, index.key, index.head_weight,
                         present(indexer->head_bias), std::nullopt, options)
        .out;
  }
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < queries; begin += whole ? queries : chunk) {
    const int64_t end = whole ? queries : std::min(begin + chunk, queries);
    const auto new_tokens = [&](const at::Tensor& x) { return x.defined() ? x.slice(1, begin, end) : x; };
    const auto seen = [&](const at::Tensor& x) { return x.defined() ? x.slice(1, 0, offset + end) : x; };
    const at::Tensor part_query = new_tokens(query), part_key = seen(key);
    const IndexVectors part_index{new_tokens(index.query), seen(index.key), new_tokens(index.head_weight)};
    const Choice choice = choose(part_query, part_key, part_index, tile, context);
    auto [out, lse] =
        sparse_attention(part_query, part_key, seen(value), choice.indices, choice.counts, choice.query_tile);
    parts.push_back(out);
    if (context.trace != nullptr) {
      context.trace->lse = lse.detach();
      context.trace->indices = choice.indices;
      context.trace->counts = choice.counts;
      context.trace->statistic = choice.statistic;
      context.trace->query_tile = choice.query_tile;
    }
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts, 1);
}

GatedSparseAttention::Choice GatedSparseAttention::choose(const at::Tensor& query, const at::Tensor& key,
                                                          const IndexVectors& index, int64_t query_tile,
                                                          const AttentionContext& context) {
  const at::NoGradGuard no_gradient;
  const bool control = context.selection.policy != SelectionPolicy::indexer;
  Choice choice;
  if (!control || !context.selection.k) choice = choose_by_index(index, control ? 1 : query_tile, context);
  if (!control) return choice;
  const bool own_k = context.selection.k.has_value();
  const at::Tensor budget_of_query =
      own_k ? constant_budget(*context.selection.k, query, key.size(1)) : choice.counts;
  const int64_t capacity = own_k ? *context.selection.k : choice.indices.size(2);
  std::tie(choice.indices, choice.counts) = select_control(context.selection, context.layer, query.detach(),
                                                           key.detach(), budget_of_query, capacity);
  return choice;
}

GatedSparseAttention::Choice GatedSparseAttention::choose_by_index(const IndexVectors& index,
                                                                   int64_t query_tile,
                                                                   const AttentionContext& context) {
  IndexSelectOptions options = select_options(indexer->config, config.budget, index.key.size(1));
  options.query_tile = query_tile;
  std::optional<at::Tensor> running_mean;
  if (options.budget != "fixed") {
    running_mean = budget.running_mean;
    if (!budget.is_set()) {
      if (!context.update_statistics) {
        fail("layer ", context.layer, ": the budget rule '", options.budget,
             "' needs its running mean, which this model has not learned; train a sparse stage or use the "
             "rule 'fixed'");
      }
      // The first training step: k_base for everyone, whatever the ratio to a mean not known yet.
      options.k_min = std::min(options.k_base, options.k_max);
      options.k_max = options.k_min;
      running_mean = at::ones({}, budget.running_mean.options());
    }
  }
  Choice choice;
  choice.query_tile = options.query_tile;
  std::tie(choice.indices, choice.counts, choice.statistic) =
      index_select(index.query.detach(), index.key.detach(), index.head_weight.detach(),
                   present(indexer->head_bias), running_mean, options, indexer->log_scale);
  if (context.update_statistics && !context.recomputing) budget.note(choice.statistic);
  return choice;
}

}  // namespace gsa
