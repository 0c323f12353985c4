#pragma once
// Selection written as loops over one row: the independent judge of select_topk and index_select.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "gsa/ops/indexer/index_select.h"

namespace gsa::testing {

/// Positions of the k highest scores, ascending; ties to the lower position; NaN and -inf never.
std::vector<int64_t> oracle_topk(const std::vector<double>& scores, int64_t k);

/// The row of each query tile from explicit scores [T,S] (future entries ignored) and each query's budget.
/// Semantics: "Selection".
std::vector<std::vector<int64_t>> oracle_rows(const at::Tensor& scores, const std::vector<int64_t>& budget,
                                              const IndexSelectOptions& options);

/// What a shared row of the queries [begin, end) chooses by, for each position before the tile: the largest
/// over the queries of score less the query's own k_t-th best candidate. -inf for kept positions and NaN.
std::vector<double> oracle_margins(const at::Tensor& scores, const std::vector<int64_t>& budget,
                                   int64_t begin, int64_t end, const IndexSelectOptions& options);

/// k_t from the statistic (semantics: line 4), in fp32 as the contract has it: a ratio next to a half would
/// round the other way in fp64. `mean` is ignored for the fixed rule.
int64_t oracle_budget(float statistic, float mean, int64_t position, const IndexSelectOptions& options);

/// Population variance of the valid scores of each row of [T,S].
std::vector<double> oracle_variance(const at::Tensor& scores);

/// The entries of row (b, r) of indices [B,R,K].
std::vector<int64_t> row_of(const at::Tensor& indices, const at::Tensor& counts, int64_t b, int64_t r);

}  // namespace gsa::testing
