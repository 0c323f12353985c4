#pragma once
// Decoders small enough for tests, of every variant.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "gsa/models/decoder.h"

namespace gsa::testing {

/// Two layers, 4 query heads over 2 key/value heads, budgets around 8 keys, 2 + 3 kept tokens.
DecoderConfig tiny_config(const std::string& variant, const std::string& rule = "fixed");

/// An initialised decoder whose running means, where it has any, are set.
Decoder tiny_model(const DecoderConfig& config, at::ScalarType dtype, uint64_t seed = 1);

/// int64 [batch, tokens], drawn from `seed`.
at::Tensor random_tokens(const DecoderConfig& config, int64_t batch, int64_t tokens, uint64_t seed);

/// Every variant that differs in what it computes: dense, gated with G1, G2 or both, sparse, gsa with each
/// activation, each budget rule and FP8 index keys. Named for test output.
std::vector<std::pair<std::string, DecoderConfig>> all_variants();

}  // namespace gsa::testing
