#pragma once
// Exact, deterministic top-k over explicit scores (semantics: line 5).

#include <ATen/core/Tensor.h>

#include <tuple>

namespace gsa {

/// For each row the positions of its `budget[b,t]` highest scores; ties go to the lower position; NaN and
/// -inf are never selected.
///
///   scores [B,T,S] floating, budget int32 [B,T] with values in [0, max_k], max_k >= 1
///
/// Returns indices int32 [B,T,max_k], ascending and padded with -1, and counts int32 [B,T] (fewer than the
/// budget where a row has fewer selectable scores). Works on the whole [T,S] matrix: for small problems,
/// plots and tests. Throws ValueError / TypeError.
std::tuple<at::Tensor, at::Tensor> select_topk(const at::Tensor& scores, const at::Tensor& budget,
                                               int64_t max_k);

/// The argument checks of select_topk, for its implementations.
void check_select_topk(const at::Tensor& scores, const at::Tensor& budget, int64_t max_k);

/// Bool mask [..., S] of the `budget[...]` highest scores of each row (the rule above). Rows may have any
/// leading shape.
at::Tensor topk_mask(const at::Tensor& scores, const at::Tensor& budget);

/// The k-th highest selectable score of each row, k = kth[...] >= 1; the lowest selectable one where a row
/// has fewer, -inf where it has none.
at::Tensor kth_score(const at::Tensor& scores, const at::Tensor& kth);

/// Positions of the true entries of mask [..., S] in ascending order, padded with -1 to `capacity`, and their
/// counts (int32). Rows with more than `capacity` true entries are the caller's error.
std::tuple<at::Tensor, at::Tensor> mask_to_indices(const at::Tensor& mask, int64_t capacity);

}  // namespace gsa
