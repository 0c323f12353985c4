#pragma once
// Rotary position embedding, half-split (dimension i is rotated with dimension i + dim/2), and the Llama 3
// scaling of its frequencies.

#include <ATen/core/Tensor.h>

#include <string>

namespace gsa {

/// Frequencies of one rotary embedding. `type`: default | linear | llama3.
struct RotaryConfig {
  int64_t dim = 0;  // how many leading dimensions are rotated
  double theta = 10000.0;
  std::string type = "default";
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

/// cos and sin for a run of positions: fp32 [T, dim / 2] (fp64 when made for fp64).
struct RotaryTable {
  at::Tensor cos;
  at::Tensor sin;
};

/// The inverse frequencies, fp32 [dim / 2] on the CPU, as `transformers` computes them.
at::Tensor rotary_frequencies(const RotaryConfig& config);

/// The table of positions [begin, begin + count) for `dim / 2` frequencies, on their device, in `dtype` (fp32
/// or fp64).
RotaryTable rotary_table(const at::Tensor& frequencies, int64_t begin, int64_t count, at::ScalarType dtype);

/// x [B,T,H,E] rotated (the op gsa::rotary); x itself for an empty table.
at::Tensor apply_rotary(const at::Tensor& x, const RotaryTable& table);

}  // namespace gsa
