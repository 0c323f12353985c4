// The same decoder on a CUDA device: skipped where there is none.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <gtest/gtest.h>

#include "gsa/base/device.h"
#include "gsa/models/decoder.h"
#include "gsa/testing/tiny_model.h"

namespace gsa {
namespace {

using testing::random_tokens;
using testing::tiny_model;

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.cpu() - b.cpu()).abs().max().item<double>();
}

void move_to_cuda(Decoder& model) {
  model.visit_tensors([](const std::string&, at::Tensor& tensor) {
    const bool trains = tensor.requires_grad();
    tensor = tensor.detach().to(at::kCUDA).requires_grad_(trains);
  });
}

class CudaDecoder : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_F(CudaDecoder, ComputesWhatTheCpuComputes) {
  for (const auto& [name, config] : testing::all_variants()) {
    SCOPED_TRACE(name);
    Decoder on_cpu = tiny_model(config, at::kDouble), on_cuda = tiny_model(config, at::kDouble);
    move_to_cuda(on_cuda);
    const at::Tensor tokens = random_tokens(config, 2, 40, 5);
    for (const auto mode : {AttentionMode::dense, AttentionMode::sparse}) {
      ForwardOptions options;
      options.mode = mode;
      options.checkpoint_activations = true;
      const auto loss = [&](Decoder& model) {
        const at::Tensor on_device = tokens.to(model.device());
        const at::Tensor hidden = model.forward(on_device, options).hidden;
        at::cross_entropy_loss(model.logits(hidden).flatten(0, 1), on_device.flatten()).backward();
        return hidden.detach();
      };
      EXPECT_LT(largest_difference(loss(on_cpu), loss(on_cuda)), 1e-9);
    }
    EXPECT_LT(largest_difference(on_cpu.embedding().grad(), on_cuda.embedding().grad()), 1e-9);
  }
}

TEST_F(CudaDecoder, CachedDecodingEqualsThePrefill) {
  for (const auto& [name, config] : testing::all_variants()) {
    SCOPED_TRACE(name);
    const at::NoGradGuard no_gradient;
    Decoder model = tiny_model(config, at::kDouble);
    move_to_cuda(model);
    const at::Tensor tokens = random_tokens(config, 2, 30, 5).to(at::kCUDA);
    KvCache cache(config.num_hidden_layers);
    ForwardOptions cached;
    cached.cache = &cache;
    std::vector<at::Tensor> parts = {model.forward(tokens.slice(1, 0, 17), cached).hidden};
    for (int64_t t = 17; t < 30; ++t) parts.push_back(model.forward(tokens.narrow(1, t, 1), cached).hidden);
    EXPECT_LT(largest_difference(model.forward(tokens).hidden, at::cat(parts, 1)), 1e-9);
  }
}

TEST_F(CudaDecoder, Bf16TrainingStaysCloseToTheCpu) {
  const DecoderConfig config = testing::tiny_config("gsa", "inverse");
  Decoder on_cpu = tiny_model(config, at::kFloat), on_cuda = tiny_model(config, at::kFloat);
  move_to_cuda(on_cuda);
  const at::Tensor tokens = random_tokens(config, 2, 40, 5);
  ForwardOptions options;
  options.mode = AttentionMode::dense;
  options.compute_dtype = at::kBFloat16;
  const at::Tensor expected = on_cpu.forward(tokens, options).hidden.to(at::kFloat);
  const at::Tensor got = on_cuda.forward(tokens.to(at::kCUDA), options).hidden.to(at::kFloat).cpu();
  EXPECT_LT((got - expected).abs().mean().item<double>(), 0.03 * expected.abs().mean().item<double>());
}

}  // namespace
}  // namespace gsa
