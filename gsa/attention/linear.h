#pragma once
// A linear map and the way modules show their tensors.
//
// Modules here are plain structs. Each has
//   template <class Visit> void parameters(const std::string& prefix, Visit&& visit);   // visit(name,
//   at::Tensor&)
// which is all that initialisation, checkpoints, optimizers and counting need. Tensors start on the meta
// device (shape only) until a checkpoint is loaded or initialize() draws them.

#include <ATen/core/Tensor.h>

#include <string>

namespace gsa {

struct Linear {
  Linear() = default;
  Linear(int64_t in, int64_t out, bool with_bias);

  /// x [..., in] -> [..., out], computed in x's dtype.
  at::Tensor operator()(const at::Tensor& x) const;

  template <class Visit>
  void parameters(const std::string& prefix, Visit&& visit) {
    visit(prefix + ".weight", weight);
    if (bias.defined()) visit(prefix + ".bias", bias);
  }

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined
};

/// A tensor that has a shape but no memory yet (meta device, fp32).
at::Tensor shape_only(at::IntArrayRef sizes);

}  // namespace gsa
