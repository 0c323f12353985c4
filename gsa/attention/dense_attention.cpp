#include "gsa/attention/dense_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace gsa {
namespace {

constexpr int64_t kMaskedQueries = 512;  // queries at a time where an explicit mask is needed

// True where the key may be seen: queries [begin, end) of T over `keys` keys.
at::Tensor visible_mask(int64_t begin, int64_t end, int64_t offset, int64_t keys, const at::Device& device) {
  const auto longs = at::TensorOptions().dtype(at::kLong).device(device);
  return at::arange(keys, longs)
      .unsqueeze(0)
      .le(at::arange(offset + begin, offset + end, longs).unsqueeze(1));
}

// Head-major in, head-major out.
at::Tensor fused(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const std::optional<at::Tensor>& mask, bool causal) {
  return at::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, std::nullopt,
                                          /*enable_gqa=*/true);
}

// Where no kernel hands out the log-sum-exp: from the logits, a block of queries at a time.
at::Tensor blocked_lse(const at::Tensor& query, const at::Tensor& key) {
  const at::NoGradGuard no_gradient;
  const int64_t batch = query.size(0), queries = query.size(1), heads = query.size(2), width = query.size(3);
  const int64_t keys = key.size(1), offset = keys - queries;
  const auto wide = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t block = std::max<int64_t>(1, (int64_t{1} << 26) / std::max<int64_t>(1, batch * heads * keys));
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < queries; begin += block) {
    const int64_t end = std::min(begin + block, queries);
    const at::Tensor grouped =
        query.slice(1, begin, end).reshape({batch, end - begin, key.size(2), -1, width});
    const at::Tensor logits =
        at::einsum("bqgre,bsge->bqgrs", {grouped, key}).to(wide) / std::sqrt(static_cast<double>(width));
    const at::Tensor visible =
        visible_mask(begin, end, offset, keys, query.device()).view({1, end - begin, 1, 1, keys});
    parts.push_back(
        at::logsumexp(logits.masked_fill(~visible, -std::numeric_limits<double>::infinity()), {-1})
            .flatten(2, 3));
  }
  return at::cat(parts, 1);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> dense_attention(const at::Tensor& query, const at::Tensor& key,
                                                   const at::Tensor& value, bool need_lse) {
  const int64_t queries = query.size(1), keys = key.size(1), offset = keys - queries;
  const at::Tensor q = query.transpose(1, 2), k = key.transpose(1, 2), v = value.transpose(1, 2);
  if (need_lse && offset == 0 && query.is_cpu()) {
    const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, /*is_causal=*/true);
    return {out.transpose(1, 2), lse.transpose(1, 2)};
  }
  const at::Tensor lse = need_lse ? blocked_lse(query, key) : at::Tensor();
  if (offset == 0) return {fused(q, k, v, std::nullopt, true).transpose(1, 2), lse};
  if (queries == 1) return {fused(q, k, v, std::nullopt, false).transpose(1, 2), lse};
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < queries; begin += kMaskedQueries) {
    const int64_t end = std::min(begin + kMaskedQueries, queries), seen = offset + end;
    const at::Tensor mask = visible_mask(begin, end, offset, seen, query.device());
    parts.push_back(fused(q.slice(2, begin, end), k.slice(2, 0, seen), v.slice(2, 0, seen), mask, false));
  }
  return {at::cat(parts, 2).transpose(1, 2), lse};
}

}  // namespace gsa
