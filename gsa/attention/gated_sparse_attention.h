#pragma once
// Gated sparse attention: the layer of the paper, all variants from two switches (gates, indexer).

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "gsa/attention/budget.h"
#include "gsa/attention/config.h"
#include "gsa/attention/indexer.h"
#include "gsa/attention/kv_cache.h"
#include "gsa/attention/linear.h"
#include "gsa/attention/rotary.h"
#include "gsa/attention/selection.h"
#include "gsa/attention/trace.h"

namespace gsa {

enum class AttentionMode {
  dense,   // every earlier token
  sparse,  // the selection; a layer without indexer and without a control selection attends densely
};

/// Sizes of one attention layer.
struct AttentionShape {
  int64_t hidden_size = 0;
  int64_t heads = 0;
  int64_t key_value_heads = 0;
  int64_t head_dim = 0;
  bool bias = false;         // on the query, key and value projections
  bool output_bias = false;  // on the output projection
};

/// What one call of a layer is told beside its input.
struct AttentionContext {
  AttentionMode mode = AttentionMode::sparse;
  RotaryTable rotary;        // of the new tokens, for query and key
  RotaryTable index_rotary;  // of the new tokens, for the indexer
  LayerCache* cache = nullptr;
  SelectionOverride selection;
  int64_t layer = 0;
  bool need_lse = false;           // dense mode: fill trace->lse
  bool update_statistics = false;  // note the budget's statistic (training)
  bool recomputing = false;        // the second run of a checkpointed layer: notes nothing
  // Queries at a time when no gradient and no trace is asked for; 0: as suits the device.
  int64_t query_chunk = 0;
  LayerTrace* trace = nullptr;  // filled when given
};

struct GatedSparseAttention {
  GatedSparseAttention() = default;
  GatedSparseAttention(const AttentionShape& shape, const GsaConfig& config);

  /// h [B,T,D], the layer's normed input -> [B,T,D].
  at::Tensor operator()(const at::Tensor& h, const AttentionContext& context);

  template <class Visit>
  void parameters(const std::string& prefix, Visit&& visit) {
    q_proj.parameters(prefix + ".q_proj", visit);
    k_proj.parameters(prefix + ".k_proj", visit);
    v_proj.parameters(prefix + ".v_proj", visit);
    o_proj.parameters(prefix + ".o_proj", visit);
    if (config.gates.value_gate) value_gate.parameters(prefix + ".value_gate", visit);
    if (config.gates.output_gate) output_gate.parameters(prefix + ".output_gate", visit);
    if (indexer) indexer->parameters(prefix + ".indexer", visit);
  }
  /// Tensors of the checkpoint that no optimizer touches.
  template <class Visit>
  void buffers(const std::string& prefix, Visit&& visit) {
    if (indexer) visit(prefix + ".indexer.running_mean", budget.running_mean);
  }

  AttentionShape shape;
  GsaConfig config;
  Linear q_proj, k_proj, v_proj, o_proj;
  Linear value_gate;   // G2: D -> G * E
  Linear output_gate;  // G1: D -> H * E
  std::optional<Indexer> indexer;
  Budget budget;

 private:
  /// The keys of each row of queries (see trace.h for the shapes).
  struct Choice {
    at::Tensor indices, counts, statistic;
    int64_t query_tile = 1;
  };
  at::Tensor gate(const at::Tensor& x, const Linear& gate, const at::Tensor& h) const;
  /// The new tokens to the cache; query and index.query are rotated in place.
  void append(const at::Tensor& h, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
              const IndexVectors& index, const AttentionContext& context) const;
  bool attends_densely(int64_t keys, const AttentionContext& context) const;
  void start_trace(const at::Tensor& h, const at::Tensor& query, const at::Tensor& key,
                   const at::Tensor& value, const IndexVectors& index, LayerTrace& trace) const;
  at::Tensor attend_densely(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionContext& context) const;
  at::Tensor attend_selected(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             const IndexVectors& index, const AttentionContext& context);
  /// Rows of `query_tile` queries for the indexer's own selection; controls select per query.
  Choice choose(const at::Tensor& query, const at::Tensor& key, const IndexVectors& index, int64_t query_tile,
                const AttentionContext& context);
  Choice choose_by_index(const IndexVectors& index, int64_t query_tile, const AttentionContext& context);
};

}  // namespace gsa
