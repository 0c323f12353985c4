#pragma once
// From index_select's arguments to its kernels' parameters, as far as no device is concerned.

#include <ATen/core/Tensor.h>

#include <optional>

#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/indexer/index_select_params.h"

namespace gsa {

/// Sets the sizes and all that follows from the options; pointers are left alone. The options are valid
/// (check_index_select).
void set_problem(IndexSelectParams& params, const at::Tensor& index_query, const at::Tensor& index_key,
                 const IndexSelectOptions& options);

/// Contiguous fp32 on the device of `like`: a copy where the tensor is not that already. Undefined for none.
at::Tensor as_floats(const std::optional<at::Tensor>& tensor, const at::Tensor& like);

/// Null for an undefined tensor.
const float* floats_or_null(const at::Tensor& tensor);

}  // namespace gsa
