#include "gsa/testing/tolerance.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "gsa/base/device.h"
#include "gsa/base/error.h"

namespace gsa::testing {

std::vector<at::Device> test_devices() {
  std::vector<at::Device> devices{at::Device(at::kCPU)};
  if (cuda_available()) {
    devices.emplace_back(at::kCUDA, 0);
  } else if (std::getenv("GSA_REQUIRE_GPU") != nullptr) {
    fail("GSA_REQUIRE_GPU is set, but this machine has no CUDA device");
  }
  return devices;
}

double max_error(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  if (a.numel() == 0) return 0;
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  const at::Tensor same = x.eq(y).logical_or(x.isnan().logical_and(y.isnan()));
  const at::Tensor difference = at::where(same, at::zeros_like(x), (x - y).abs());
  const double largest = difference.nan_to_num(std::numeric_limits<double>::infinity()).max().item<double>();
  return largest;
}

::testing::AssertionResult within_tolerance(const at::Tensor& actual, const at::Tensor& same_dtype,
                                            const at::Tensor& fp64) {
  const double error = max_error(actual, fp64), allowed = 2 * max_error(same_dtype, fp64);
  const at::Tensor finite = fp64.detach().to(at::kCPU, at::kDouble).nan_to_num(0, 0, 0).abs();
  const double largest = finite.numel() == 0 ? 0 : finite.max().item<double>();
  double epsilon = 4 * std::numeric_limits<float>::epsilon();
  if (actual.scalar_type() == at::kDouble) epsilon = 4 * std::numeric_limits<double>::epsilon();
  if (actual.scalar_type() == at::kHalf) epsilon = 0x1p-10;
  if (actual.scalar_type() == at::kBFloat16) epsilon = 0x1p-7;
  const double floor = largest * epsilon;
  if (error <= std::max(allowed, floor)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "error " << error << " against fp64, allowed " << std::max(allowed, floor)
         << " (twice the error of ATen in the same dtype: " << allowed << ")";
}

::testing::AssertionResult same_elements(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes())
    return ::testing::AssertionFailure() << "shapes " << a.sizes() << " and " << b.sizes();
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  const int64_t different =
      x.ne(y).logical_and((x.isnan().logical_and(y.isnan())).logical_not()).sum().item<int64_t>();
  if (different == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << different << " of " << x.numel() << " elements differ";
}

}  // namespace gsa::testing
