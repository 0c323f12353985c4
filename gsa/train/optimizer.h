#pragma once
// AdamW over named parameter groups, its state readable as named tensors.

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gsa/io/safetensors.h"

namespace gsa {

/// Parameters that share a learning-rate factor, a weight decay and a clipping norm.
struct ParameterGroup {
  std::string name;
  NamedTensors parameters;
  double rate_factor = 1.0;
  double weight_decay = 0.0;
};

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
};

/// Splits parameters into "model", "model_no_decay", "indexer", "indexer_no_decay" (empty ones left out):
/// matrices decay; norms, biases and scalars do not. The indexer's groups learn at `indexer_factor` times the
/// rate.
std::vector<ParameterGroup> parameter_groups(const NamedTensors& parameters, double weight_decay,
                                             double indexer_factor);

/// The L2 norm over all gradients (parameters without one count as zero); scaled down in place to `max_norm`
/// when it is larger and max_norm > 0. Returns the norm before scaling, NaN or infinity when a gradient holds
/// one.
double clip_gradients(const NamedTensors& parameters, double max_norm);

/// Decoupled weight decay Adam (Loshchilov & Hutter), through torch's fused kernel on any device.
class AdamW {
 public:
  AdamW(std::vector<ParameterGroup> groups, AdamWOptions options);

  /// One update with each group's rate = learning_rate * rate_factor. A parameter without a gradient is left
  /// alone.
  void step(double learning_rate);
  void zero_gradients();

  const std::vector<ParameterGroup>& groups() const { return groups_; }

  /// "<parameter>.exp_avg", ".exp_avg_sq", ".step" for every parameter; views of the live state.
  NamedTensors state() const;
  /// Copies the state back; `find` returns the tensor of a name, and throws when there is none.
  void load_state(const std::function<at::Tensor(const std::string&)>& find);

 private:
  struct Moments {
    at::Tensor average, square, step;
  };
  std::vector<ParameterGroup> groups_;
  std::vector<std::vector<Moments>> moments_;
  AdamWOptions options_;
};

}  // namespace gsa
