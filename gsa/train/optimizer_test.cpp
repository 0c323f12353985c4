#include "gsa/train/optimizer.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "gsa/base/error.h"

namespace gsa {
namespace {

at::Tensor leaf(at::IntArrayRef sizes) {
  return at::randn(sizes).requires_grad_();
}

TEST(ParameterGroups, OnlyMatricesDecayAndIndexersLearnFaster) {
  const NamedTensors parameters = {{"model.layers.0.self_attn.q_proj.weight", leaf({4, 4})},
                                   {"model.layers.0.self_attn.value_gate.bias", leaf({4})},
                                   {"model.layers.0.input_layernorm.weight", leaf({4})},
                                   {"model.layers.0.self_attn.indexer.q_proj.weight", leaf({4, 4})},
                                   {"model.layers.0.self_attn.indexer.log_scale", leaf({})}};
  const auto groups = parameter_groups(parameters, 0.1, 10.0);
  ASSERT_EQ(groups.size(), 4u);
  EXPECT_EQ(groups[0].name, "model");
  EXPECT_EQ(groups[0].parameters.size(), 1u);
  EXPECT_EQ(groups[0].weight_decay, 0.1);
  EXPECT_EQ(groups[1].parameters.size(), 2u);
  EXPECT_EQ(groups[1].weight_decay, 0.0);
  EXPECT_EQ(groups[2].name, "indexer");
  EXPECT_EQ(groups[2].rate_factor, 10.0);
  EXPECT_EQ(groups[3].parameters[0].first, "model.layers.0.self_attn.indexer.log_scale");
}

TEST(AdamW, FollowsItsFormula) {
  at::Tensor parameter = at::full({3}, 2.0, at::kDouble).requires_grad_();
  AdamW adam({{"g", {{"p", parameter}}, 10.0, 0.5}}, {.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8});
  double value = 2.0, average = 0.0, square = 0.0;
  for (int step = 1; step <= 3; ++step) {
    const double gradient = 0.3 * step;
    parameter.mutable_grad() = at::full({3}, gradient, at::kDouble);
    adam.step(0.01);
    value -= 0.1 * 0.5 * value;
    average = 0.9 * average + 0.1 * gradient;
    square = 0.99 * square + 0.01 * gradient * gradient;
    value -=
        0.1 * (average / (1 - std::pow(0.9, step))) / (std::sqrt(square / (1 - std::pow(0.99, step))) + 1e-8);
    EXPECT_NEAR(parameter[1].item<double>(), value, 1e-12);
  }
}

TEST(AdamW, StateRoundTripsBitForBit) {
  const auto make = [](const at::Tensor& p) { return AdamW({{"g", {{"p", p}}, 1.0, 0.1}}, {}); };
  at::Tensor a = leaf({5, 3});
  AdamW first = make(a);
  const at::Tensor gradient = at::randn({5, 3});
  a.mutable_grad() = gradient;
  first.step(1e-2);
  at::Tensor b = a.detach().clone().requires_grad_();
  AdamW second = make(b);
  const auto saved = first.state();
  second.load_state([&](const std::string& name) {
    for (const auto& [key, tensor] : saved) {
      if (key == name) return tensor.clone();
    }
    fail("no ", name);
  });
  b.mutable_grad() = gradient;
  first.step(1e-2);
  second.step(1e-2);
  EXPECT_TRUE(at::equal(a, b));
  EXPECT_THROW(second.load_state([](const std::string&) { return at::ones({1}); }), Error);
}

TEST(AdamW, NoGradientNoChange) {
  at::Tensor parameter = leaf({4});
  const at::Tensor before = parameter.detach().clone();
  AdamW adam({{"g", {{"p", parameter}}, 1.0, 0.5}}, {});
  adam.step(1.0);
  EXPECT_TRUE(at::equal(parameter, before));
}

TEST(ClipGradients, ScalesToTheNormAndReportsTheOldOne) {
  at::Tensor a = leaf({2}), b = leaf({2, 2}), unused = leaf({3});
  a.mutable_grad() = at::full({2}, 2.0f);
  b.mutable_grad() = at::full({2, 2}, 1.0f);
  const NamedTensors parameters = {{"a", a}, {"b", b}, {"unused", unused}};
  EXPECT_NEAR(clip_gradients(parameters, 100.0), std::sqrt(12.0), 1e-6);
  EXPECT_EQ(a.grad()[0].item<float>(), 2.0f);
  EXPECT_NEAR(clip_gradients(parameters, 1.0), std::sqrt(12.0), 1e-6);
  EXPECT_NEAR(clip_gradients(parameters, 0.0), 1.0, 1e-5);
  b.mutable_grad().fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(std::isnan(clip_gradients(parameters, 1.0)));
}

}  // namespace
}  // namespace gsa
