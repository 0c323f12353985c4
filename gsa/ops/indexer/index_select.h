#pragma once
// Score and select in one op, without ever holding the scores (semantics: lines 3 to 5 and "Selection").

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace gsa {

/// How a query's number of keys follows from its scores (semantics: line 4).
enum class BudgetRule {
  kFixed,      // k_base
  kInverse,    // k_base * mean variance / variance: a confident query takes fewer
  kAsPrinted,  // k_base * variance / mean variance: the formula as the paper prints it
  kEntropy,    // k_base * entropy / mean entropy
  kMaxScore,   // k_base * mean maximum / maximum (control)
  kRandom,     // k_base * draw / mean draw, a fixed pseudo-random draw in [0.5, 1.5) per position (control)
};

BudgetRule parse_budget_rule(std::string_view op, std::string_view name);

struct IndexSelectOptions {
  int64_t k_base = 2048;
  int64_t k_min = 256;
  int64_t k_max = 4096;
  std::string budget = "inverse";
  std::string activation = "sigmoid";
  int64_t query_tile = 1;
  int64_t keep_first = 0;
  int64_t keep_recent = 0;
  double tile_factor = 1.5;
};

/// The keys that each row of queries attends.
///
///   index_query [B,T,J,I], index_key [B,S,I] (S >= T; the dtype of index_query or Float8_e4m3fn)
///   head_weight [B,T,J] (already activated), head_bias [J] or absent
///   running_mean: one fp32 number, the running mean of the budget rule's statistic; required by every rule
///                 but "fixed"
///   log_scale: one number (absent: 0), read by the "entropy" rule
///
/// Per query t at position p = t + S - T: k_t = clamp(round(k_base * c_t), k_min, min(k_max, p + 1)),
/// in fp32, rounding half to even. query_tile 1: the row holds the kept positions (the first keep_first and
/// the last keep_recent up to p, whatever their scores) and the best-scoring other keys up to k_t in all.
/// query_tile > 1: the row of queries [r * query_tile, (r + 1) * query_tile) holds round(tile_factor * k)
/// keys before the tile's start (k: the largest k_t of the tile; kept positions counted from the tile's start
/// among them; the rest by the highest maximum over the tile's queries of score minus that query's own k_t-th
/// best score among the candidates) and all positions of the tile.
///
/// Returns indices int32 [B,R,K] (ascending, padded with -1; R = ceil(T / query_tile); K = k_max, or
/// round(tile_factor * k_max) + query_tile), counts int32 [B,R], statistic fp32 [B,T] (what the rule reads:
/// the variance over the valid scores for fixed, inverse and as_printed). Ties go to the lower position, NaN
/// scores are never selected and count for nothing. Not differentiable. Memory O(T * K + block * S). Throws
/// ValueError / TypeError.
std::tuple<at::Tensor, at::Tensor, at::Tensor> index_select(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale = std::nullopt);

/// Columns K of the indices.
int64_t selection_capacity(const IndexSelectOptions& options);

/// The argument checks of index_select, for its kernels.
void check_index_select(const at::Tensor& index_query, const at::Tensor& index_key,
                        const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                        const std::optional<at::Tensor>& running_mean, const IndexSelectOptions& options,
                        const std::optional<at::Tensor>& log_scale);

/// The op with its schema's arguments, every device without a kernel of its own: kernels fall back to it for
/// shapes they do not take.
std::tuple<at::Tensor, at::Tensor, at::Tensor> index_select_reference(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean, int64_t k_base,
    int64_t k_min, int64_t k_max, c10::string_view budget, c10::string_view activation, int64_t query_tile,
    int64_t keep_first, int64_t keep_recent, double tile_factor, const std::optional<at::Tensor>& log_scale);

}  // namespace gsa
