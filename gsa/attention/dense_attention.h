#pragma once
// Dense causal attention through ATen, for the dense variants, the dense training stages and as the
// yardstick.

#include <ATen/core/Tensor.h>

#include <tuple>

namespace gsa {

/// Causal attention of query [B,T,H,E] over key, value [B,S,G,E]; query t sits at position t + S - T, H % G
/// == 0, scale 1/sqrt(E). Returns [B,T,H,E] and, with `need_lse`, the log-sum-exp [B,T,H] (fp32; fp64 for
/// fp64), else an undefined tensor. Differentiable in the output (lse is not). Memory O(T) where ATen has a
/// fused kernel.
std::tuple<at::Tensor, at::Tensor> dense_attention(const at::Tensor& query, const at::Tensor& key,
                                                   const at::Tensor& value, bool need_lse);

}  // namespace gsa
