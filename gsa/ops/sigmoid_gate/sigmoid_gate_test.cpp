#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sigmoid.h>
#include <gtest/gtest.h>

#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

using testing::within_tolerance;

/// Forward and both gradients on `device` in `dtype` against fp64.
void check_case(at::Tensor x, at::Tensor gate, const at::Device& device, at::ScalarType dtype) {
  x = x.to(device, dtype);
  gate = gate.to(device, dtype);
  const at::Tensor x64 = x.to(at::kDouble), gate64 = gate.to(at::kDouble), open = at::sigmoid(gate64);
  EXPECT_TRUE(within_tolerance(sigmoid_gate(x, gate), x * at::sigmoid(gate), x64 * open));
  const at::Tensor grad = (x * 0.5 + gate).to(dtype), grad64 = grad.to(at::kDouble), same = at::sigmoid(gate);
  const auto [grad_x, grad_gate] = sigmoid_gate_backward(grad, x, gate);
  EXPECT_TRUE(within_tolerance(grad_x, grad * same, grad64 * open));
  EXPECT_TRUE(within_tolerance(grad_gate, grad * x * same * (1 - same), grad64 * x64 * open * (1 - open)));
}

TEST(SigmoidGate, MatchesTheFormula) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      auto generator = testing::case_generator(static_cast<uint64_t>(dtype));
      for (int64_t trial = 0; trial < 6; ++trial) {
        const int64_t rows = testing::draw(generator, 1, 70), columns = testing::draw(generator, 1, 300);
        check_case(at::randn({rows, columns}), at::randn({rows, columns}) * 3, device, dtype);
      }
      check_case(at::randn({1}), at::randn({1}), device, dtype);
      check_case(at::randn({5, 9}).t(), at::randn({9, 5}), device, dtype);
      check_case(at::randn({4, 64}).slice(1, 3, 40), at::randn({4, 64}).slice(1, 7, 44), device, dtype);
    }
  }
}

TEST(SigmoidGate, SaturatesAndPassesNanOn) {
  for (const auto& device : testing::test_devices()) {
    const at::Tensor x = at::full({3}, 2.0f, device);
    at::Tensor gate = at::full({3}, 1e4f, device);
    gate[1] = -1e4f;
    gate[2] = std::numeric_limits<float>::quiet_NaN();
    const at::Tensor out = sigmoid_gate(x, gate).cpu();
    EXPECT_EQ(out[0].item<float>(), 2.0f);
    EXPECT_EQ(out[1].item<float>(), 0.0f);
    EXPECT_TRUE(std::isnan(out[2].item<float>()));
    EXPECT_EQ(sigmoid_gate(at::empty({0, 4}, device), at::empty({0, 4}, device)).numel(), 0);
  }
}

TEST(SigmoidGate, RefusesBadArguments) {
  EXPECT_THROW(sigmoid_gate(at::randn({2}), at::randn({3})), c10::ValueError);
  EXPECT_THROW(sigmoid_gate(at::randn({2}), at::randn({2}, at::kDouble)), c10::TypeError);
  EXPECT_THROW(sigmoid_gate(at::full({2}, 1, at::kInt), at::full({2}, 1, at::kInt)), c10::TypeError);
}

}  // namespace
}  // namespace gsa
