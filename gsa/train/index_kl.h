#pragma once
// The indexer's loss on what a layer did, over all its queries or a sample of them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "gsa/attention/config.h"
#include "gsa/attention/trace.h"

namespace gsa {

/// A run of queries [begin, begin + length).
struct QueryRun {
  int64_t begin = 0;
  int64_t length = 0;
};

/// The queries that a loss over `queries` of `total` looks at: runs of `run_length`, one drawn from each of
/// equal strata, so that early and late positions are always there. The same draw for the same seed. All of
/// them when queries is 0 or not below total.
std::vector<QueryRun> draw_queries(int64_t queries, int64_t total, int64_t run_length, uint64_t seed);

/// Mean over those queries and the batch of the index KL in nats, a scalar: index_loss_dense where the layer
/// attended densely (needs trace.lse), index_loss_selected where it attended to a selection. Gradients reach
/// the indexer alone.
at::Tensor index_kl(const LayerTrace& trace, const IndexerConfig& config, const std::vector<QueryRun>& runs);

/// The same for an indexer that guesses uniformly, without gradients: what index_kl is compared with.
at::Tensor uniform_index_kl(const LayerTrace& trace, const IndexerConfig& config,
                            const std::vector<QueryRun>& runs);

}  // namespace gsa
