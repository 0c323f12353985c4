// Selection in ATen: find the k-th score, take everything above it, and fill up with ties from the left.

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "gsa/ops/selection/select_topk.h"

namespace gsa {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

at::Tensor without_nan(const at::Tensor& scores) {
  return scores.masked_fill(scores.isnan(), kMinusInfinity);
}

std::tuple<at::Tensor, at::Tensor> select_topk_reference(const at::Tensor& scores, const at::Tensor& budget,
                                                         int64_t max_k) {
  check_select_topk(scores, budget, max_k);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  TORCH_CHECK_VALUE(
      budget.numel() == 0 || (budget.min().item<int>() >= 0 && budget.max().item<int>() <= max_k),
      "select_topk: budget expected values in [0, max_k = ", max_k, "], got [", budget.min().item<int>(),
      ", ", budget.max().item<int>(), "]");
  return mask_to_indices(topk_mask(scores, budget), max_k);
}

}  // namespace

at::Tensor kth_score(const at::Tensor& scores, const at::Tensor& kth) {
  const at::Tensor clean = without_nan(scores);
  const int64_t keys = scores.size(-1);
  if (keys == 0 || scores.numel() == 0) return at::full(kth.sizes(), kMinusInfinity, scores.options());
  const at::Tensor selectable = clean.gt(kMinusInfinity).sum(-1);
  const at::Tensor rank = kth.to(at::kLong).minimum(selectable).clamp_min(1);
  const int64_t largest = std::min<int64_t>(rank.max().item<int64_t>(), keys);
  const at::Tensor best = std::get<0>(at::topk(clean, largest, -1, /*largest=*/true, /*sorted=*/true));
  return best.gather(-1, (rank - 1).unsqueeze(-1)).squeeze(-1);
}

at::Tensor topk_mask(const at::Tensor& scores, const at::Tensor& budget) {
  const at::Tensor clean = without_nan(scores);
  const at::Tensor threshold = kth_score(clean, budget).unsqueeze(-1);
  const at::Tensor above = clean.gt(threshold);
  const at::Tensor tied = clean.eq(threshold).logical_and(clean.gt(kMinusInfinity));
  const at::Tensor wanted = budget.unsqueeze(-1) - above.sum(-1, /*keepdim=*/true);
  const at::Tensor chosen = above.logical_or(tied.logical_and(tied.cumsum(-1, at::kInt).le(wanted)));
  return chosen.logical_and(budget.unsqueeze(-1).gt(0));
}

std::tuple<at::Tensor, at::Tensor> mask_to_indices(const at::Tensor& mask, int64_t capacity) {
  const int64_t keys = mask.size(-1);
  const at::Tensor position = at::arange(keys, mask.options().dtype(at::kInt)).expand(mask.sizes());
  // Slot of each selected key in its row; everything else goes to one slot beyond the capacity, cut off at
  // the end.
  const at::Tensor slot =
      at::where(mask, mask.cumsum(-1) - 1, at::full({}, capacity, mask.options().dtype(at::kLong)));
  auto shape = mask.sizes().vec();
  shape.back() = capacity + 1;
  const at::Tensor indices = at::full(shape, -1, mask.options().dtype(at::kInt)).scatter_(-1, slot, position);
  return {indices.slice(-1, 0, capacity).contiguous(), mask.sum(-1).to(at::kInt)};
}

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("select_topk", select_topk_reference);
}

}  // namespace gsa
