#include "gsa/base/check.h"

#include <c10/util/Exception.h>

#include <sstream>
#include <string>

namespace gsa {
namespace {

std::string expected_shape(std::initializer_list<int64_t> sizes, std::string_view legend) {
  std::ostringstream text;
  text << legend << " = [";
  const char* separator = "";
  for (int64_t size : sizes) {
    text << separator;
    if (size == kAny) {
      text << "any";
    } else {
      text << size;
    }
    separator = ", ";
  }
  text << "]";
  return text.str();
}

}  // namespace

void check_shape(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                 std::initializer_list<int64_t> sizes, std::string_view legend) {
  TORCH_CHECK_VALUE(tensor.defined(), op, ": ", argument, " expected a tensor ", legend,
                    ", got an undefined tensor");
  bool matches = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t dim = 0;
  for (auto size = sizes.begin(); matches && size != sizes.end(); ++size, ++dim) {
    matches = *size == kAny || *size == tensor.size(dim);
  }
  TORCH_CHECK_VALUE(matches, op, ": ", argument, " expected shape ", expected_shape(sizes, legend), ", got ",
                    tensor.sizes());
}

void check_floating(std::string_view op, std::string_view argument, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(at::isFloatingType(tensor.scalar_type()), op, ": ", argument,
                   " expected a floating-point tensor, got ", tensor.scalar_type());
}

void check_dtype(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                 at::ScalarType dtype) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", argument, " expected dtype ", dtype, ", got ",
                   tensor.scalar_type());
}

void check_same_kind(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                     std::string_view like_name, const at::Tensor& like) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), op, ": ", argument, " expected the dtype of ",
                   like_name, " (", like.scalar_type(), "), got ", tensor.scalar_type());
  check_same_device(op, argument, tensor, like_name, like);
}

void check_same_device(std::string_view op, std::string_view argument, const at::Tensor& tensor,
                       std::string_view like_name, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), op, ": ", argument, " expected the device of ",
                    like_name, " (", like.device(), "), got ", tensor.device());
}

}  // namespace gsa
