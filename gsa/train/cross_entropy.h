#pragma once
// Next-token cross entropy without the [tokens, vocabulary] matrix.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace gsa {

/// A target that does not count.
inline constexpr int64_t kIgnoredTarget = -1;

/// The mean cross entropy of softmax(hidden weight^T) against `targets`, a scalar (fp32; fp64 for fp64
/// input), differentiable in both.
///
/// hidden [N,D] and weight [V,D] floating, targets int64 [N] in [0,V) or kIgnoredTarget. The rows are worked
/// through in chunks of `chunk_rows` (0: as many as suit the device), and the gradients are computed in the
/// same pass, so what is kept for the backward is [N,D] + [V,D]. Products run in `product_dtype` (absent:
/// hidden's dtype); the softmax is fp32 at least. Throws ValueError / TypeError for shapes and dtypes,
/// ValueError when no target counts (on a CPU; elsewhere the loss is NaN).
at::Tensor chunked_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                 const at::Tensor& targets,
                                 std::optional<at::ScalarType> product_dtype = std::nullopt,
                                 int64_t chunk_rows = 0);

}  // namespace gsa
