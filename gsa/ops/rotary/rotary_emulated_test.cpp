// The CUDA kernel of rotary, run on the CPU by the emulation, against fp64.
#include "gsa/testing/cuda_emulation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "gsa/ops/rotary/rotary.h"
#include "gsa/ops/rotary/rotary_problem.h"
#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

// The library has the same functions as compiled by nvcc: these must not take their place.
#pragma GCC visibility push(hidden)
#include "gsa/ops/rotary/rotary_generic.cu"
#pragma GCC visibility pop

namespace gsa {
namespace {

/// x [B,T,H,E] with contiguous rows, its first 2 * half dimensions turned.
void check_emulated(const at::Tensor& x, int64_t half) {
  const at::Tensor angle = at::rand({x.size(1), half}, at::kDouble) * 200;
  const at::Tensor cos = angle.cos().to(at::kFloat), sin = angle.sin().to(at::kFloat);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  ASSERT_EQ(launch_rotary(rotary_params(x, cos, sin, out), nullptr), cudaSuccess);
  const at::Tensor exact = rotary_reference(x.to(at::kDouble), cos.to(at::kDouble), sin.to(at::kDouble));
  EXPECT_TRUE(testing::within_tolerance(out, rotary_reference(x, cos, sin), exact))
      << x.sizes() << " " << x.strides() << " half " << half;
  EXPECT_TRUE(testing::same_elements(out.slice(-1, 2 * half), x.slice(-1, 2 * half)));
}

class RotaryEmulated : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(testing::run_seed()); }
};

TEST_F(RotaryEmulated, MatchesFp64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    check_emulated(at::randn({2, 5, 3, 128}).to(dtype), 64);
    check_emulated(at::randn({1, 70, 4, 64}).to(dtype), 16);
    check_emulated(at::randn({1, 3, 1, 24}).to(dtype), 8);  // half a piece of two packs passes
    check_emulated(at::randn({2, 3, 2, 16}).to(dtype), 0);
    check_emulated(at::randn({2, 3, 2, 13}).to(dtype), 5);  // an element at a time
  }
}

TEST_F(RotaryEmulated, ReadsStridedViews) {
  const at::Tensor fused = at::randn({2, 9, 12, 48}).to(at::kBFloat16);
  check_emulated(fused.narrow(2, 5, 4), 16);
  check_emulated(fused.narrow(3, 8, 40), 16);
  check_emulated(fused.narrow(3, 3, 40), 16);  // nothing is aligned
  check_emulated(fused.transpose(0, 1), 16);
  check_emulated(fused.narrow(0, 0, 1).narrow(1, 0, 1).expand({3, 4, 12, 48}), 24);
}

}  // namespace
}  // namespace gsa
