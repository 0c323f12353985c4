#pragma once
// The gated lightning indexer (paper Eq. 7): which earlier tokens does a query need?

#include <ATen/core/Tensor.h>

#include <string>

#include "gsa/attention/config.h"
#include "gsa/attention/linear.h"
#include "gsa/attention/rotary.h"

namespace gsa {

/// The indexer's reading of T tokens.
struct IndexVectors {
  at::Tensor query;        // [B,T,J,I], rotated
  at::Tensor key;          // [B,T,I], rotated, rounded to key_dtype; one key head serves all index heads
  at::Tensor head_weight;  // [B,T,J], sigmoid of its logit (raw for relu)
};

struct Indexer {
  Indexer() = default;
  Indexer(int64_t hidden_size, const IndexerConfig& config);

  /// h [B,T,D], the layer's normed input, is detached first: no loss on the indexer reaches the model.
  /// Rounding the keys passes gradients through, but for what saturates.
  IndexVectors operator()(const at::Tensor& h, const RotaryTable& rotary) const;

  /// The same before positions and rounding, for a cache to go on with.
  IndexVectors project(const at::Tensor& h) const;

  /// Whether a cache stores the keys as e4m3.
  bool has_float8_keys() const { return config.key_dtype == "float8_e4m3fn"; }

  /// Overwrites all parameters: projections N(0, 1/hidden_size), biases 0, log_scale log 10.
  void initialize(at::Generator generator);

  template <class Visit>
  void parameters(const std::string& prefix, Visit&& visit) {
    query_proj.parameters(prefix + ".query_proj", visit);
    key_proj.parameters(prefix + ".key_proj", visit);
    weight_proj.parameters(prefix + ".weight_proj", visit);
    if (head_bias.defined()) visit(prefix + ".head_bias", head_bias);
    visit(prefix + ".log_scale", log_scale);
  }

  IndexerConfig config;
  Linear query_proj;     // D -> J * I
  Linear key_proj;       // D -> I
  Linear weight_proj;    // D -> J, with bias
  at::Tensor head_bias;  // [J], undefined for relu
  at::Tensor log_scale;  // scalar; the KL and the entropy budget read exp(log_scale) * score
};

}  // namespace gsa
