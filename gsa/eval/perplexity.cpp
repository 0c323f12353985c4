#include "gsa/eval/perplexity.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gsa/base/error.h"

namespace gsa {

void LossAccumulator::add(const at::Tensor& losses) {
  const at::Tensor values = losses.to(at::kCPU, at::kDouble).contiguous();
  const int64_t batch = values.size(0), length = values.size(1);
  if (by_position_.empty()) by_position_.assign(length, 0.0);
  if (length != static_cast<int64_t>(by_position_.size())) {
    fail("evaluation: expected sequences of ", by_position_.size(), " tokens, got ", length);
  }
  const double* value = values.data_ptr<double>();
  for (int64_t sequence = 0; sequence < batch; ++sequence, value += length) {
    for (int64_t i = 0; i < length; ++i) by_position_[i] += value[i];
    by_sequence_.push_back(std::accumulate(value, value + length, 0.0) / static_cast<double>(length));
  }
}

double LossAccumulator::loss() const {
  return std::accumulate(by_sequence_.begin(), by_sequence_.end(), 0.0) /
         std::max<double>(1, static_cast<double>(by_sequence_.size()));
}

double LossAccumulator::standard_error() const {
  const double count = static_cast<double>(by_sequence_.size());
  if (count < 2) return 0;
  double squares = 0;
  for (const double value : by_sequence_) squares += (value - loss()) * (value - loss());
  return std::sqrt(squares / (count - 1) / count);
}

std::vector<PositionBucket> LossAccumulator::buckets() const {
  std::vector<PositionBucket> buckets;
  const int64_t length = static_cast<int64_t>(by_position_.size());
  for (int64_t begin = 0, end = 64; begin < length; begin = end, end *= 2) {
    PositionBucket bucket;
    bucket.begin = begin;
    bucket.end = std::min(end, length);
    bucket.tokens = (bucket.end - begin) * sequences();
    const double sum = std::accumulate(by_position_.begin() + begin, by_position_.begin() + bucket.end, 0.0);
    bucket.loss = sum / static_cast<double>(bucket.tokens);
    bucket.perplexity = std::exp(bucket.loss);
    buckets.push_back(bucket);
  }
  return buckets;
}

at::Tensor chunk_losses(const at::Tensor& logits, const at::Tensor& targets) {
  return at::cross_entropy_loss(logits.to(at::kFloat), targets, {}, at::Reduction::None);
}

at::Tensor join_losses(const std::vector<at::Tensor>& chunks, const at::Tensor& targets) {
  return at::cat(chunks).view(targets.sizes());
}

}  // namespace gsa
