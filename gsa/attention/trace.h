#pragma once
// What one layer's attention did, for losses, evaluation and pictures.

#include <ATen/core/Tensor.h>

namespace gsa {

/// One layer in one forward. Everything but index_query, index_key, head_weight, head_bias and log_scale is
/// detached, and those depend on indexer parameters alone; so a loss on a trace can never reach the model.
struct LayerTrace {
  int64_t layer = 0;
  at::Tensor input;     // [B,T,D] the layer's normed input: what attention, gates and indexer read
  at::Tensor residual;  // [B,T,D] the residual stream after the layer
  at::Tensor query;     // [B,T,H,E] after RoPE
  at::Tensor key;       // [B,S,G,E] after RoPE
  at::Tensor value;     // [B,S,G,E] after gate G2
  at::Tensor lse;       // fp32 [B,T,H]; dense attention fills it only when ForwardOptions::need_lse is set

  at::Tensor indices;      // int32 [B,R,K], undefined when attention was dense
  at::Tensor counts;       // int32 [B,R]
  at::Tensor statistic;    // fp32 [B,T] what the budget rule reads; undefined without an indexer's selection
  int64_t query_tile = 1;  // queries per row of indices

  at::Tensor index_query;  // [B,T,J,I], undefined without an indexer (so are the others below)
  at::Tensor index_key;    // [B,S,I]
  at::Tensor head_weight;  // [B,T,J], already activated
  at::Tensor head_bias;    // [J], undefined for relu
  at::Tensor log_scale;    // scalar
};

}  // namespace gsa
