#include "gsa/ops/rotary/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

using testing::within_tolerance;

/// The formula in the dtype of the table.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = cos.size(1);
  const at::Tensor wide = x.to(cos.scalar_type()), c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  const at::Tensor a = wide.narrow(-1, 0, half), b = wide.narrow(-1, half, half);
  return at::cat({a * c - b * s, b * c + a * s, wide.narrow(-1, 2 * half, x.size(-1) - 2 * half)}, -1);
}

struct Table {
  at::Tensor cos, sin;
};

Table random_table(int64_t tokens, int64_t half, const at::Device& device, at::ScalarType dtype) {
  const at::Tensor angle = at::rand({tokens, half}, at::kDouble) * 200 - 100;
  const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return {angle.cos().to(device, wide), angle.sin().to(device, wide)};
}

/// x, of any strides, turned by a table, against fp64.
void check_case(const at::Tensor& x, const Table& table) {
  const at::Tensor out = rotary(x, table.cos, table.sin);
  EXPECT_TRUE(out.is_contiguous());
  ASSERT_EQ(out.scalar_type(), x.scalar_type());
  const at::Tensor same_dtype = rotated(x, table.cos, table.sin).to(x.scalar_type());
  const at::Tensor exact = rotated(x.to(at::kDouble), table.cos.to(at::kDouble), table.sin.to(at::kDouble));
  EXPECT_TRUE(within_tolerance(out, same_dtype, exact))
      << x.sizes() << " " << x.strides() << " D/2 " << table.cos.size(1);
  const int64_t passing = 2 * table.cos.size(1);
  EXPECT_TRUE(testing::same_elements(out.slice(-1, passing), x.slice(-1, passing)));
}

TEST(Rotary, MatchesTheFormula) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      auto generator = testing::case_generator(static_cast<uint64_t>(dtype));
      for (int64_t trial = 0; trial < 20; ++trial) {
        const int64_t batch = testing::draw(generator, 1, 3), tokens = testing::draw(generator, 1, 70);
        const int64_t heads = testing::draw(generator, 1, 9), unit = trial % 2 == 0 ? 8 : 1;
        const int64_t half = unit * testing::draw(generator, 0, 9),
                      rest = unit * testing::draw(generator, 0, 5);
        if (half + rest == 0) continue;
        const at::Tensor x = at::randn({batch, tokens, heads, 2 * half + rest}).to(device, dtype);
        check_case(x, random_table(tokens, half, device, dtype));
      }
    }
  }
}

TEST(Rotary, ReadsStridedViews) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const Table table = random_table(20, 16, device, dtype);
      const at::Tensor fused =
          at::randn({2, 20, 12, 48}).to(device, dtype);  // a projection to q, k and v heads
      check_case(fused.narrow(2, 5, 4), table);
      check_case(fused.narrow(3, 8, 40), table);
      check_case(fused.narrow(3, 3, 41), table);  // nothing is 16-byte aligned
      check_case(at::randn({20, 2, 3, 40}).to(device, dtype).transpose(0, 1), table);
      check_case(at::randn({2, 3, 20, 40}).to(device, dtype).transpose(1, 2), table);
      check_case(at::randn({2, 20, 40, 3}).to(device, dtype).transpose(2, 3), table);
      check_case(at::randn({1, 1, 3, 40}).to(device, dtype).expand({2, 20, 3, 40}), table);
    }
  }
}

TEST(Rotary, OtherDtypesOfTheTable) {
  for (const auto& device : testing::test_devices()) {
    const Table wide = random_table(5, 4, device, at::kDouble);
    check_case(at::randn({1, 5, 2, 8}).to(device, at::kBFloat16), wide);
    check_case(at::randn({1, 5, 2, 8}).to(device, at::kFloat), wide);
    // fp64 numbers keep their precision under a table in fp32.
    const at::Tensor x = at::randn({1, 5, 2, 8}, at::kDouble).to(device);
    const at::Tensor cos = wide.cos.to(at::kFloat), sin = wide.sin.to(at::kFloat);
    const at::Tensor expected = rotated(x, cos.to(at::kDouble), sin.to(at::kDouble));
    EXPECT_LT(testing::max_error(rotary(x, cos, sin), expected), 1e-14);
  }
}

TEST(Rotary, PassingNumbersPassAndNaNStaysInItsPair) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const Table table = random_table(3, 8, device, dtype);
      at::Tensor x = at::randn({1, 3, 2, 32}).to(device, dtype);
      x[0][1][0][20].fill_(std::numeric_limits<float>::infinity());
      x[0][1][1][3].fill_(std::numeric_limits<float>::quiet_NaN());
      const at::Tensor out = rotary(x, table.cos, table.sin);
      EXPECT_TRUE(testing::same_elements(out.slice(-1, 16), x.slice(-1, 16)));
      const at::Tensor nan = out.isnan().cpu();
      EXPECT_EQ(nan.sum().item<int64_t>(), 2);
      EXPECT_TRUE(nan[0][1][1][3].item<bool>());
      EXPECT_TRUE(nan[0][1][1][11].item<bool>());
      EXPECT_EQ(rotary(x.slice(1, 0, 0), table.cos.slice(0, 0, 0), table.sin.slice(0, 0, 0)).numel(), 0);
    }
  }
}

TEST(Rotary, GradientIsTheRotationBack) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const Table table = random_table(11, 8, device, dtype);
      const at::Tensor x = at::randn({2, 11, 3, 24}).to(device, dtype).requires_grad_();
      const at::Tensor weight = at::randn({2, 11, 3, 24}).to(device, dtype);
      rotary(x, table.cos, table.sin).backward(weight);
      const at::Tensor exact =
          rotated(weight.to(at::kDouble), table.cos.to(at::kDouble), -table.sin.to(at::kDouble));
      EXPECT_TRUE(within_tolerance(x.grad(), rotated(weight, table.cos, -table.sin).to(dtype), exact));
    }
  }
}

TEST(Rotary, RefusesBadArguments) {
  const at::Tensor x = at::randn({1, 3, 2, 8}), table = at::randn({3, 4});
  EXPECT_THROW(rotary(x.select(0, 0), table, table), c10::ValueError);
  EXPECT_THROW(rotary(x, table.slice(0, 1), table.slice(0, 1)), c10::ValueError);
  EXPECT_THROW(rotary(x, at::randn({3, 5}), at::randn({3, 5})), c10::ValueError);
  EXPECT_THROW(rotary(x, table, table.slice(1, 1)), c10::ValueError);
  EXPECT_THROW(rotary(x, table.to(at::kBFloat16), table.to(at::kBFloat16)), c10::TypeError);
  EXPECT_THROW(rotary(x, table, table.to(at::kDouble)), c10::TypeError);
  EXPECT_THROW(rotary(at::zeros({1, 3, 2, 8}, at::kInt), table, table), c10::TypeError);
}

}  // namespace
}  // namespace gsa
