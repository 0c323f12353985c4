// Drawing a decoder's parameters.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "gsa/models/decoder.h"

namespace gsa {
namespace {

at::Tensor normal(at::IntArrayRef sizes, double deviation, at::Generator& generator) {
  return at::empty(sizes, at::kFloat).normal_(0.0, deviation, generator);
}

void draw_linear(Linear& linear, double deviation, at::Generator& generator) {
  linear.weight = normal(linear.weight.sizes(), deviation, generator);
  if (linear.bias.defined()) linear.bias = at::zeros(linear.bias.sizes(), at::kFloat);
}

// The sigmoid starts at `initial` with a spread of about a tenth in the logit; an identity gate has zero
// logits.
void draw_gate(Linear& gate, const GateConfig& config, at::Generator& generator) {
  if (!gate.weight.defined()) return;
  const auto width = static_cast<double>(gate.weight.size(1));
  const double logit = config.identity ? 0.0 : std::log(config.initial / (1.0 - config.initial));
  gate.weight = config.identity ? at::zeros(gate.weight.sizes(), at::kFloat)
                                : normal(gate.weight.sizes(), 0.1 / std::sqrt(width), generator);
  gate.bias = at::full(gate.bias.sizes(), logit, at::kFloat);
}

void draw_additions(GatedSparseAttention& attention, at::Generator& generator) {
  draw_gate(attention.value_gate, attention.config.gates, generator);
  draw_gate(attention.output_gate, attention.config.gates, generator);
  if (attention.indexer) attention.indexer->initialize(generator);
}

void move_to(at::Tensor& tensor, at::Device device, at::ScalarType dtype) {
  tensor = tensor.to(device, dtype).detach();
}

bool is_addition(const std::string& name) {
  const std::string part = parameter_part(name);
  return part == "gates" || part == "indexer";
}

}  // namespace

void Decoder::initialize(uint64_t seed, at::Device device, at::ScalarType dtype) {
  const at::NoGradGuard no_gradient;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double deviation = config_.initializer_range;
  embed_tokens_ = normal(embed_tokens_.sizes(), deviation, generator);
  for (auto& layer : layers_) {
    auto& attention = layer.self_attn;
    layer.input_layernorm.weight = at::ones(layer.input_layernorm.weight.sizes(), at::kFloat);
    layer.post_attention_layernorm.weight =
        at::ones(layer.post_attention_layernorm.weight.sizes(), at::kFloat);
    for (Linear* linear : {&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj,
                           &layer.mlp.gate_proj, &layer.mlp.up_proj, &layer.mlp.down_proj}) {
      draw_linear(*linear, deviation, generator);
    }
  }
  norm_.weight = at::ones(norm_.weight.sizes(), at::kFloat);
  if (lm_head_.weight.defined()) draw_linear(lm_head_, deviation, generator);
  // Gates and indexers come last, so that variants of one seed share all other parameters.
  for (auto& layer : layers_) draw_additions(layer.self_attn, generator);
  parameters([&](const std::string&, at::Tensor& tensor) { move_to(tensor, device, dtype); });
  visit_tensors([&](const std::string& name, at::Tensor& tensor) {
    if (name.ends_with(".running_mean"))
      tensor = tensor.to(device);
    else
      tensor.requires_grad_(true);
  });
}

void Decoder::initialize_additions(uint64_t seed) {
  const at::NoGradGuard no_gradient;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (auto& layer : layers_) draw_additions(layer.self_attn, generator);
  const auto target_device = device();
  const auto target_dtype = dtype();
  parameters([&](const std::string& name, at::Tensor& tensor) {
    if (is_addition(name)) move_to(tensor, target_device, target_dtype);
  });
}

}  // namespace gsa
