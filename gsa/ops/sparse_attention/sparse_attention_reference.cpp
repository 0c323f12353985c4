// Attention over selected keys in ATen, one block of queries at a time. A block's work is a batch of small
// dense attentions; there are two ways to lay it out:
//   shared keys    all S keys and a mask, one product per KV head: best while a row holds a good part of the
//   keys gathered keys  each query's own K keys: best for few queries over a long cache, and the only one
//   where a NaN outside a row stays outside

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gsa/base/check.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"

namespace gsa {
namespace {

/// Logits held at once.
constexpr int64_t kBlockElements = int64_t{1} << 23;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

at::ScalarType compute_dtype(const at::Tensor& query) {
  return query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// A batch of dense attentions with a mask: query [..., M, E], key and value [..., C, E], mask [..., M, C].
struct Dense {
  at::Tensor query, key, value, mask;
};

struct Attended {
  at::Tensor out, lse;
};

at::Tensor masked_logits(const Dense& dense, double scale) {
  return at::matmul(dense.query * scale, dense.key.transpose(-1, -2))
      .masked_fill(~dense.mask, kMinusInfinity);
}

Attended attend(const Dense& dense, double scale) {
  const at::Tensor logits = masked_logits(dense, scale);
  const at::Tensor p =
      logits.softmax(-1).masked_fill(~dense.mask, 0);  // also where a row has no key, and softmax gives NaN
  return {at::matmul(p, dense.value), at::logsumexp(logits, -1)};
}

/// exp(logits - lse), 0 for rows without keys.
at::Tensor probabilities(const at::Tensor& logits, const at::Tensor& lse) {
  return (logits - lse.masked_fill(lse.eq(kMinusInfinity), 0).unsqueeze(-1)).exp();
}

/// Gradients of query, key and value; the probabilities are computed again from the log-sum-exp.
Dense attend_backward(const Dense& dense, const Attended& forward, const Attended& grad, double scale) {
  const at::Tensor p = probabilities(masked_logits(dense, scale), forward.lse);
  const at::Tensor grad_p = at::matmul(grad.out, dense.value.transpose(-1, -2));
  const at::Tensor shift = grad.lse - (grad.out * forward.out).sum(-1);
  const at::Tensor grad_logits = p * (grad_p + shift.unsqueeze(-1)) * scale;
  return {at::matmul(grad_logits, dense.key),
          at::matmul(grad_logits.transpose(-1, -2), dense.query),
          at::matmul(p.transpose(-1, -2), grad.out),
          {}};
}

/// The arguments of one call, and how its blocks are laid out.
struct Call {
  at::Tensor query, key, value;  // in the compute dtype
  const at::Tensor& indices;
  const at::Tensor& counts;
  int64_t query_tile;
  double scale;
  bool gathered;

  int64_t batch() const { return query.size(0); }
  int64_t queries() const { return query.size(1); }
  int64_t heads() const { return query.size(2); }
  int64_t dim() const { return query.size(3); }
  int64_t keys() const { return key.size(1); }
  int64_t groups() const { return key.size(2); }
  int64_t per_group() const { return heads() / groups(); }
  int64_t capacity() const { return indices.size(2); }

  int64_t block() const {
    const int64_t columns = gathered ? capacity() * (1 + dim()) : keys();
    const int64_t queries_at_once = kBlockElements / std::max<int64_t>(1, batch() * heads() * columns);
    return std::max(query_tile, queries_at_once / query_tile * query_tile);
  }
};

Call make_call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
               const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile,
               std::optional<double> scale) {
  const auto dtype = compute_dtype(query);
  const bool few = 8 * query.size(1) * indices.size(2) <= key.size(1);
  const bool finite = few || (key.isfinite().all().item<bool>() && value.isfinite().all().item<bool>());
  return {query.to(dtype),
          key.to(dtype),
          value.to(dtype),
          indices,
          counts,
          query_tile,
          scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(3)))),
          few || !finite};
}

/// The row entries of queries [begin, end): positions [B,Q,K] (long, 0 where absent) and whether they are
/// attended [B,Q,K].
std::pair<at::Tensor, at::Tensor> row_entries(const Call& call, int64_t begin, int64_t end) {
  const auto longs = call.indices.options().dtype(at::kLong);
  const at::Tensor row = at::arange(begin, end, longs).floor_divide(call.query_tile);
  const at::Tensor entries = call.indices.index_select(1, row).to(at::kLong);
  const at::Tensor position = (at::arange(begin, end, longs) + (call.keys() - call.queries())).unsqueeze(-1);
  const at::Tensor slot = at::arange(call.capacity(), longs);
  const at::Tensor attended = entries.ge(0)
                                  .logical_and(entries.le(position))
                                  .logical_and(slot.lt(call.counts.index_select(1, row).unsqueeze(-1)));
  return {entries.masked_fill(~attended, 0), attended};
}

/// [B,Q,H,...] -> [B,G,Q*H/G,...] (shared keys) or [B,Q,G,H/G,...] (gathered).
at::Tensor pack_heads(const Call& call, const at::Tensor& x) {
  const at::Tensor grouped = x.unflatten(2, {call.groups(), call.per_group()});
  return call.gathered ? grouped : grouped.transpose(1, 2).flatten(2, 3);
}

at::Tensor unpack_heads(const Call& call, const at::Tensor& x, int64_t queries) {
  return (call.gathered ? x : x.unflatten(2, {queries, call.per_group()}).transpose(1, 2)).flatten(2, 3);
}

/// Keys [B,S,G,E] at entries [B,Q,K] -> [B,Q,G,K,E].
at::Tensor gather_keys(const Call& call, const at::Tensor& x, const at::Tensor& entries) {
  const auto flat =
      entries.flatten(1).unsqueeze(-1).unsqueeze(-1).expand({-1, -1, call.groups(), call.dim()});
  return x.gather(1, flat).unflatten(1, {entries.size(1), entries.size(2)}).transpose(2, 3);
}

Dense make_block(const Call& call, int64_t begin, int64_t end, const at::Tensor& entries,
                 const at::Tensor& attended) {
  const at::Tensor query = pack_heads(call, call.query.slice(1, begin, end));
  if (call.gathered) {
    const at::Tensor absent = ~attended.unsqueeze(2).unsqueeze(-1);
    return {query, gather_keys(call, call.key, entries).masked_fill(absent, 0),
            gather_keys(call, call.value, entries).masked_fill(absent, 0),
            attended.unsqueeze(2).unsqueeze(3)};
  }
  // Absent entries are sent to one column beyond the last key.
  const at::Tensor column = entries.masked_fill(~attended, call.keys());
  const at::Tensor mask = at::zeros({call.batch(), end - begin, call.keys() + 1}, attended.options())
                              .scatter_(2, column, true)
                              .slice(2, 0, call.keys());
  return {query, call.key.transpose(1, 2), call.value.transpose(1, 2),
          mask.repeat_interleave(call.per_group(), 1).unsqueeze(1)};
}

/// Adds a block's key-side gradient to the whole one [B,S,G,E].
void accumulate(const Call& call, at::Tensor& total, const at::Tensor& block, const at::Tensor& entries) {
  if (!call.gathered) {
    total.add_(block.transpose(1, 2));
    return;
  }
  const auto flat =
      entries.flatten(1).unsqueeze(-1).unsqueeze(-1).expand({-1, -1, call.groups(), call.dim()});
  total.scatter_add_(1, flat, block.transpose(2, 3).flatten(1, 2));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_reference(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
    const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile, std::optional<double> scale) {
  const Call call = make_call(query, key, value, indices, counts, query_tile, scale);
  const auto dtype = compute_dtype(query);
  const at::Tensor lse_grad =
      grad_lse ? grad_lse->to(dtype).masked_fill(lse.eq(kMinusInfinity), 0) : at::zeros_like(lse);
  at::Tensor key_total = at::zeros_like(call.key), value_total = at::zeros_like(call.value);
  std::vector<at::Tensor> query_grads{
      at::empty({call.batch(), 0, call.heads(), call.dim()}, call.query.options())};
  for (int64_t begin = 0; begin < call.queries(); begin += call.block()) {
    const int64_t end = std::min(begin + call.block(), call.queries());
    const auto rows = [&](const at::Tensor& x) { return pack_heads(call, x.slice(1, begin, end).to(dtype)); };
    const auto [entries, attended] = row_entries(call, begin, end);
    const Dense grads = attend_backward(make_block(call, begin, end, entries, attended),
                                        {rows(out), rows(lse)}, {rows(grad_out), rows(lse_grad)}, call.scale);
    query_grads.push_back(unpack_heads(call, grads.query, end - begin));
    accumulate(call, key_total, grads.key, entries);
    accumulate(call, value_total, grads.value, entries);
  }
  const auto type = query.scalar_type();
  return {at::cat(query_grads, 1).to(type), key_total.to(type), value_total.to(type)};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> sparse_attention_reference(const at::Tensor& query, const at::Tensor& key,
                                                              const at::Tensor& value,
                                                              const at::Tensor& indices,
                                                              const at::Tensor& counts, int64_t query_tile,
                                                              std::optional<double> scale) {
  check_sparse_attention(query, key, value, indices, counts, query_tile);
  const Call call = make_call(query, key, value, indices, counts, query_tile, scale);
  std::vector<at::Tensor> outs{at::empty({call.batch(), 0, call.heads(), call.dim()}, call.query.options())};
  std::vector<at::Tensor> lses{at::empty({call.batch(), 0, call.heads()}, call.query.options())};
  for (int64_t begin = 0; begin < call.queries(); begin += call.block()) {
    const int64_t end = std::min(begin + call.block(), call.queries());
    const auto [entries, attended] = row_entries(call, begin, end);
    const Attended block = attend(make_block(call, begin, end, entries, attended), call.scale);
    outs.push_back(unpack_heads(call, block.out, end - begin));
    lses.push_back(unpack_heads(call, block.lse, end - begin));
  }
  return {at::cat(outs, 1).to(query.scalar_type()), at::cat(lses, 1)};
}

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("sparse_attention", sparse_attention_reference);
  library.impl("sparse_attention_backward", backward_reference);
}

}  // namespace gsa
