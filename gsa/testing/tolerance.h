#pragma once
// What "correct" means for a kernel: its error against the fp64 reference is at most twice the error of the
// ATen reference computed in the kernel's own dtype.

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <vector>

namespace gsa::testing {

/// CPU, and CUDA where a GPU is. With GSA_REQUIRE_GPU set in the environment an absent GPU is an error.
std::vector<at::Device> test_devices();

/// The largest |a - b|; infinite if exactly one of the two is NaN or they are different infinities anywhere.
double max_error(const at::Tensor& a, const at::Tensor& b);

/// The tolerance rule. `same_dtype` is the ATen reference in the dtype of `actual`. An error below one unit
/// in the last place of the largest result (four for fp32 and fp64) always passes: there the rule would
/// compare two roundings.
::testing::AssertionResult within_tolerance(const at::Tensor& actual, const at::Tensor& same_dtype,
                                            const at::Tensor& fp64);

/// Equal shape and every element equal (NaN equals NaN).
::testing::AssertionResult same_elements(const at::Tensor& a, const at::Tensor& b);

}  // namespace gsa::testing
