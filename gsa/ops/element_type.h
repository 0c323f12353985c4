#pragma once
// From torch's dtypes to those of kernels.

#include <ATen/core/Tensor.h>

#include <optional>

#include "gsa/cuda/element_type.h"

namespace gsa {

/// What kernels call the tensor's dtype; none for a dtype that they do not take.
inline std::optional<ElementType> element_type(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return ElementType::kFloat;
    case at::kHalf:
      return ElementType::kHalf;
    case at::kBFloat16:
      return ElementType::kBfloat16;
    default:
      return std::nullopt;
  }
}

}  // namespace gsa
