#pragma once
// Forward and backward of one stage: which parameters learn, and from what.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "gsa/io/safetensors.h"
#include "gsa/models/decoder.h"
#include "gsa/train/run_config.h"

namespace gsa {

/// Means over the micro-batches of a step.
struct StepLosses {
  double loss = 0.0;
  std::optional<double> cross_entropy, index_kl, uniform_kl, selected_keys;
};

/// One stage's step on a model. The model outlives it.
///
///   dense           cross entropy under dense attention; the indexer rests
///   indexer_warmup  the sum over layers of the dense index KL; the model rests
///   sparse          cross entropy + weight * the sum over layers of the KL on the selection
class StageStep {
 public:
  /// Sets which parameters require gradients.
  StageStep(Decoder& model, const StageConfig& stage, const RunConfig& config);

  /// The parameters that this stage trains.
  NamedTensors trained_parameters() const;

  /// Adds the gradients of one micro-batch, divided by the number of micro-batches. tokens int64 [B,L+1];
  /// `seed` decides which queries are sampled; `measure` also computes the KL of a uniform guess.
  void accumulate(const at::Tensor& tokens, uint64_t seed, bool measure);

  /// The means since the last call, which waits for the device.
  StepLosses take_losses();

 private:
  at::Tensor layer_loss(const LayerTrace& trace, uint64_t seed, bool measure);

  Decoder& model_;
  const StageConfig& stage_;
  std::optional<at::ScalarType> compute_dtype_;
  bool checkpoint_activations_;
  at::Tensor head_weight_;
  int64_t micro_batches_ = 0;
  at::Tensor loss_, cross_entropy_, index_kl_, uniform_kl_, selected_keys_;
};

}  // namespace gsa
