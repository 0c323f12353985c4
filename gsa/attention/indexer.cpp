#include "gsa/attention/indexer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace gsa {
namespace {

void draw(at::Tensor& parameter, double deviation, at::Generator& generator) {
  parameter = at::empty(parameter.sizes(), at::kFloat).normal_(0.0, deviation, generator);
}

/// The nearest e4m3 numbers, in the dtype of `key`. Saturates, where a conversion alone would give NaN. The
/// sum is exact: a number and its rounding lie within a factor of two, or one of them is zero.
at::Tensor round_to_float8(const at::Tensor& key) {
  constexpr double kLargest = 448;
  const at::Tensor clamped = at::clamp(key, -kLargest, kLargest);
  const at::Tensor rounded = clamped.detach().to(at::kFloat8_e4m3fn).to(key.scalar_type());
  return clamped + (rounded - clamped).detach();
}

}  // namespace

Indexer::Indexer(int64_t hidden_size, const IndexerConfig& indexer_config)
    : config(indexer_config),
      query_proj(hidden_size, config.index_heads * config.index_dim, false),
      key_proj(hidden_size, config.index_dim, false),
      weight_proj(hidden_size, config.index_heads, true),
      log_scale(shape_only({})) {
  if (config.activation != "relu") head_bias = shape_only({config.index_heads});
}

IndexVectors Indexer::project(const at::Tensor& h) const {
  const at::Tensor input = h.detach();
  const at::Tensor query =
      query_proj(input).view({h.size(0), h.size(1), config.index_heads, config.index_dim});
  const at::Tensor weight = weight_proj(input);
  return {query, key_proj(input), config.activation == "relu" ? weight : at::sigmoid(weight)};
}

IndexVectors Indexer::operator()(const at::Tensor& h, const RotaryTable& rotary) const {
  const IndexVectors plain = project(h);
  const at::Tensor key = apply_rotary(plain.key.unsqueeze(2), rotary).squeeze(2);
  return {apply_rotary(plain.query, rotary), has_float8_keys() ? round_to_float8(key) : key,
          plain.head_weight};
}

void Indexer::initialize(at::Generator generator) {
  // The input is normed, so this deviation gives index vectors of unit variance and logits of order one.
  const double deviation = 1.0 / std::sqrt(static_cast<double>(key_proj.weight.size(1)));
  draw(query_proj.weight, deviation, generator);
  draw(key_proj.weight, deviation, generator);
  draw(weight_proj.weight, deviation, generator);
  weight_proj.bias = at::zeros(weight_proj.bias.sizes(), at::kFloat);
  if (head_bias.defined()) head_bias = at::zeros(head_bias.sizes(), at::kFloat);
  log_scale = at::full({}, std::log(10.0), at::kFloat);
}

}  // namespace gsa
