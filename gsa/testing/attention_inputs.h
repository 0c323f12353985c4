#pragma once
// Inputs of one attention layer, for benchmarks: random, or with neighbouring queries that choose alike as
// they do in text.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace gsa::testing {

struct AttentionShape {
  int64_t batch = 1, queries = 1, keys = 1;   // B, T, S
  int64_t heads = 16, groups = 4, dim = 128;  // H, G, E
  int64_t index_heads = 4, index_dim = 64;    // J, I
};

/// How far neighbouring queries agree: the number of different keys that 16 (64) of them choose, over k. In
/// text these are about 2 and 3; independent queries have many times more.
struct Overlap {
  double union16 = 0, union64 = 0;
};

/// How index queries are drawn: sqrt(1 - fresh) * (a direction that turns by a right angle every `period`
/// tokens) + sqrt(fresh) * (noise of the token's own). fresh = 1: independent queries.
struct QueryProcess {
  double fresh = 1;
  int64_t period = 1;
};

struct AttentionInputs {
  at::Tensor query, key, value;                    // [B,T,H,E], [B,S,G,E], [B,S,G,E]
  at::Tensor index_query, index_key, head_weight;  // [B,T,J,I], [B,S,I], fp32 [B,T,J]
};

/// The last T of S positions; everything but the index queries is normal noise (head_weight its sigmoid).
AttentionInputs make_attention_inputs(const AttentionShape& shape, const QueryProcess& process,
                                      const at::TensorOptions& options, uint64_t seed);

/// What the inputs' last 64 queries choose: the union of their k best keys over k, in tiles of 16 and of 64.
/// Needs T >= 64.
Overlap measure_overlap(const AttentionInputs& inputs, int64_t k);

/// The process whose overlap over `keys` keys is nearest to `target`, by bisection on samples of 64 queries.
QueryProcess fit_overlap(const AttentionShape& shape, const Overlap& target, int64_t k,
                         const at::TensorOptions& options);

}  // namespace gsa::testing
