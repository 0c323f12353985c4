#pragma once
// Argument checks shared by all ops. Every message reads "op: argument expected ..., got ...".

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string_view>

namespace gsa {

/// A dimension that may have any size in check_shape.
inline constexpr int64_t kAny = -1;

/// Checks the number of dimensions and each size (kAny: unchecked). `legend` is how the message spells the
/// shape, e.g. "[B,T,H,E]".
void check_shape(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                 std::initializer_list<int64_t> sizes, std::string_view legend);

/// Checks that the tensor holds floating-point numbers (TypeError otherwise).
void check_floating(std::string_view op, std::string_view argument, const at::Tensor& tensor);

/// Checks the exact dtype (TypeError otherwise).
void check_dtype(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                 at::ScalarType dtype);

/// Checks that `tensor` has the dtype and device of `like`, which the message calls `like_name`.
void check_same_kind(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                     std::string_view like_name, const at::Tensor& like);

/// Checks the device only, for arguments whose dtype is free (indices, fp32 weights).
void check_same_device(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                       std::string_view like_name, const at::Tensor& like);

}  // namespace gsa
