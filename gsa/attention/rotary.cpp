#include "gsa/attention/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/where.h>

#include <numbers>

#include "gsa/base/error.h"
#include "gsa/ops/rotary/rotary.h"

namespace gsa {
namespace {

// Llama 3: long wavelengths are slowed by `factor`, short ones kept, those between blended.
at::Tensor scale_llama3(const at::Tensor& frequencies, const RotaryConfig& config) {
  const auto original = static_cast<double>(config.original_max_position_embeddings);
  const at::Tensor wavelength = at::reciprocal(frequencies) * (2.0 * std::numbers::pi);
  const at::Tensor is_long = wavelength > original / config.low_freq_factor;
  const at::Tensor is_short = wavelength < original / config.high_freq_factor;
  const at::Tensor blend = (at::reciprocal(wavelength) * original - config.low_freq_factor) /
                           (config.high_freq_factor - config.low_freq_factor);
  const at::Tensor blended = (1.0 - blend) * frequencies / config.factor + blend * frequencies;
  return at::where(is_long, frequencies / config.factor, at::where(is_short, frequencies, blended));
}

}  // namespace

at::Tensor rotary_frequencies(const RotaryConfig& config) {
  if (config.dim == 0) return {};
  const at::Tensor exponent = at::arange(0, config.dim, 2, at::kLong).to(at::kFloat) / config.dim;
  at::Tensor frequencies = at::reciprocal(at::pow(config.theta, exponent));
  if (config.type == "default") return frequencies;
  if (config.type == "linear") return frequencies / config.factor;
  if (config.type == "llama3") return scale_llama3(frequencies, config);
  fail("rope_scaling.rope_type: expected default | linear | llama3, got '", config.type, "'");
}

RotaryTable rotary_table(const at::Tensor& frequencies, int64_t begin, int64_t count, at::ScalarType dtype) {
  if (!frequencies.defined()) return {};
  const at::Tensor positions = at::arange(begin, begin + count, frequencies.options().dtype(dtype));
  const at::Tensor angles = positions.unsqueeze(1) * frequencies.to(dtype).unsqueeze(0);
  return {at::cos(angles), at::sin(angles)};
}

at::Tensor apply_rotary(const at::Tensor& x, const RotaryTable& table) {
  return table.cos.defined() ? rotary(x, table.cos, table.sin) : x;
}

}  // namespace gsa
