#pragma once
// Next-token loss by position in the context.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace gsa {

/// Positions [begin, end) of the context and the loss there, in nats a token.
struct PositionBucket {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t tokens = 0;
  double loss = 0;
  double perplexity = 1;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("begin", begin);
    field("end", end);
    field("tokens", tokens);
    field("loss", loss);
    field("perplexity", perplexity);
  }
};

/// Adds up per-token losses. Buckets double: [0,64), [64,128), [128,256), ...; the last one ends with the
/// sequence.
class LossAccumulator {
 public:
  /// Losses [B,T] of positions 0 .. T-1; every call must have the same T.
  void add(const at::Tensor& losses);

  int64_t tokens() const { return sequences() * static_cast<int64_t>(by_position_.size()); }
  int64_t sequences() const { return static_cast<int64_t>(by_sequence_.size()); }
  /// Mean over all tokens.
  double loss() const;
  /// Standard error of the mean over sequences; 0 for fewer than two.
  double standard_error() const;
  std::vector<PositionBucket> buckets() const;

 private:
  std::vector<double> by_position_;  // sums over sequences
  std::vector<double> by_sequence_;  // means over positions
};

/// Cross entropy of hidden [B,T,D] against targets int64 [B,T]: fp32 [B,T]. `logits` maps hidden [n,D] to
/// [n,V]; it is called on chunks of tokens, so that no [B*T,V] matrix is ever held.
template <class Logits>
at::Tensor token_losses(const at::Tensor& hidden, const at::Tensor& targets, Logits&& logits);

/// The losses of one chunk: logits [n,V], targets [n] -> fp32 [n].
at::Tensor chunk_losses(const at::Tensor& logits, const at::Tensor& targets);
at::Tensor join_losses(const std::vector<at::Tensor>& chunks, const at::Tensor& targets);

template <class Logits>
at::Tensor token_losses(const at::Tensor& hidden, const at::Tensor& targets, Logits&& logits) {
  constexpr int64_t kChunk = 1024;
  const at::Tensor flat = hidden.reshape({-1, hidden.size(-1)}), flat_targets = targets.reshape({-1});
  std::vector<at::Tensor> chunks;
  for (int64_t begin = 0; begin < flat.size(0); begin += kChunk) {
    const int64_t end = begin + kChunk < flat.size(0) ? begin + kChunk : flat.size(0);
    chunks.push_back(chunk_losses(logits(flat.slice(0, begin, end)), flat_targets.slice(0, begin, end)));
  }
  return join_losses(chunks, targets);
}

}  // namespace gsa
