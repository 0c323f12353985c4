#pragma once
// Activation checkpointing: keep a layer's input for backward, recompute the rest.

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace gsa {

/// A layer as a function of its input; parameters are reached through the closure. `recomputing` is true for
/// the second run, which must compute the same numbers (and should have no side effects).
using CheckpointedLayer = std::function<std::vector<at::Tensor>(const at::Tensor& x, bool recomputing)>;

/// layer(x, false) without keeping its graph; backward runs layer(x, true) with a graph and goes through it.
/// The layer's parameters get their gradients by accumulation into .grad, so use backward(), not grad(). The
/// closure must stay valid until backward.
std::vector<at::Tensor> checkpoint_layer(CheckpointedLayer layer, const at::Tensor& x);

}  // namespace gsa
