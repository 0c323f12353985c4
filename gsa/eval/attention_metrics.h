#pragma once
// What a layer's attention and selection did, as the numbers of semantics.md, "Quantities people measure".

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "gsa/attention/trace.h"

namespace gsa {

/// One layer's numbers over everything added. Selection numbers are absent for dense attention; recall and
/// captured mass also when no query ever had to leave a key out.
struct LayerMetrics {
  int64_t layer = 0;
  std::optional<double>
      first_token_attention;  // mean of A[t,0] over sequences, heads and queries t >= 1; absent for one token
  std::optional<double>
      sink_rate;                 // share of (sequence, head) whose mean A[t,0] over t = 1 .. 64 is above 0.3
  double max_activation = 0;     // largest absolute value of the residual stream after the layer
  std::optional<double> mean_k;  // keys that a query attended to
  std::optional<double>
      recall;  // |selected and best| / k, best: the k keys with the most dense attention (mean over heads)
  std::optional<double> captured_mass;  // dense attention (mean over heads) on the selected keys
  std::optional<double> captured_mass_without_first;  // the same among the keys other than token 0
  template <class Visitor>
  void fields(Visitor&& field) {
    field("layer", layer);
    field("first_token_attention", first_token_attention);
    field("sink_rate", sink_rate);
    field("max_activation", max_activation);
    field("mean_k", mean_k);
    field("recall", recall);
    field("captured_mass", captured_mass);
    field("captured_mass_without_first", captured_mass_without_first);
  }
};

/// Adds up one layer's traces. Recall and captured mass are means over the queries that left at least one
/// visible key out (the others capture everything by definition); mean k is over all queries.
class LayerAccumulator {
 public:
  /// A trace of whole sequences (no cache: as many keys as queries) with lse. Works in blocks of queries:
  /// memory O(block * S * H). Throws Error for a trace without lse or with a cache.
  void add(const LayerTrace& trace);
  LayerMetrics metrics() const;

 private:
  void add_first_token(const LayerTrace& trace);
  void add_selection(const LayerTrace& trace);

  int64_t layer_ = 0;
  double first_token_ = 0, first_token_count_ = 0;
  double sinks_ = 0, heads_ = 0;
  double max_activation_ = 0;
  double keys_ = 0, queries_ = 0;
  double recall_ = 0, mass_ = 0, mass_without_first_ = 0, choosing_ = 0, choosing_without_first_ = 0;
};

/// Dense attention probabilities of queries [begin, end) of a trace, mean over heads: fp32 [B,end-begin,S].
at::Tensor mean_attention(const LayerTrace& trace, int64_t begin, int64_t end);

/// Which keys queries [begin, end) of a trace attended to: bool [B,end-begin,S]. The trace must hold a
/// selection.
at::Tensor selected_keys(const LayerTrace& trace, int64_t begin, int64_t end);

}  // namespace gsa
