#pragma once
// Choosing the next token.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>

namespace gsa {

struct SamplingConfig {
  double temperature = 0.0;  // 0: greedy
  int64_t top_k = 0;         // only the k likeliest tokens; 0: all
  double top_p = 1.0;        // only the likeliest tokens that together reach this probability
  uint64_t seed = 0;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("temperature", temperature);
    field("top_k", top_k);
    field("top_p", top_p);
    field("seed", seed);
  }
};

/// Draws tokens from logits. Works in fp64 on the CPU with a generator of its own: the same logits and seed
/// give the same tokens everywhere.
class Sampler {
 public:
  /// Throws Error for a value out of range.
  explicit Sampler(const SamplingConfig& config);

  /// logits [V], any floating dtype and device. Ties go to the lower token. Throws Error when a logit is NaN.
  int32_t operator()(const at::Tensor& logits);

 private:
  SamplingConfig config_;
  std::mt19937_64 generator_;
};

}  // namespace gsa
