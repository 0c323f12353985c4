#include "gsa/ops/indexer/index_select.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "gsa/base/check.h"
#include "gsa/ops/indexer/index_scores.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_select";

void check_scalar(std::string_view argument, const std::optional<at::Tensor>& tensor) {
  if (!tensor) return;
  TORCH_CHECK_VALUE(tensor->numel() == 1, kOp, ": ", argument, " expected one number, got shape ",
                    tensor->sizes());
  check_floating(kOp, argument, *tensor);
}

void check_arguments(const at::Tensor& index_query, const at::Tensor& index_key,
                     const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                     const std::optional<at::Tensor>& running_mean, const IndexSelectOptions& options,
                     const std::optional<at::Tensor>& log_scale) {
  check_index_inputs(kOp, index_query, index_key, head_weight, head_bias, /*takes_float8_key=*/true);
  parse_activation(kOp, options.activation);
  const BudgetRule rule = parse_budget_rule(kOp, options.budget);
  check_scalar("running_mean", running_mean);
  check_scalar("log_scale", log_scale);
  TORCH_CHECK_VALUE(rule == BudgetRule::kFixed || running_mean, kOp,
                    ": running_mean expected one number for the budget '", options.budget, "', got none");
  TORCH_CHECK_VALUE(options.k_base >= 1, kOp, ": k_base expected a positive number, got ", options.k_base);
  TORCH_CHECK_VALUE(options.k_min >= 1, kOp, ": k_min expected a positive number, got ", options.k_min);
  TORCH_CHECK_VALUE(options.k_max >= options.k_min, kOp, ": k_max expected at least k_min = ", options.k_min,
                    ", got ", options.k_max);
  TORCH_CHECK_VALUE(options.keep_first >= 0, kOp, ": keep_first expected zero or more, got ",
                    options.keep_first);
  TORCH_CHECK_VALUE(options.keep_recent >= 0, kOp, ": keep_recent expected zero or more, got ",
                    options.keep_recent);
  TORCH_CHECK_VALUE(options.k_min >= options.keep_first + options.keep_recent, kOp,
                    ": k_min expected at least keep_first + keep_recent = ",
                    options.keep_first + options.keep_recent, ", got ", options.k_min);
  TORCH_CHECK_VALUE(options.query_tile >= 1, kOp, ": query_tile expected a positive number, got ",
                    options.query_tile);
  TORCH_CHECK_VALUE(options.tile_factor > 0, kOp, ": tile_factor expected a positive number, got ",
                    options.tile_factor);
}

using SchemaFunction = decltype(index_select_reference);

std::tuple<at::Tensor, at::Tensor, at::Tensor> meta(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean, int64_t k_base,
    int64_t k_min, int64_t k_max, c10::string_view budget, c10::string_view activation, int64_t query_tile,
    int64_t keep_first, int64_t keep_recent, double tile_factor, const std::optional<at::Tensor>& log_scale) {
  const IndexSelectOptions options{
      k_base,     k_min,      k_max,       std::string(budget), std::string(activation),
      query_tile, keep_first, keep_recent, tile_factor};
  check_arguments(index_query, index_key, head_weight, head_bias, running_mean, options, log_scale);
  const int64_t batch = index_query.size(0), queries = index_query.size(1),
                rows = (queries + query_tile - 1) / query_tile;
  const auto ints = index_query.options().dtype(at::kInt);
  return {at::empty({batch, rows, selection_capacity(options)}, ints), at::empty({batch, rows}, ints),
          at::empty({batch, queries}, index_query.options().dtype(at::kFloat))};
}

/// Selection is discrete: nothing to differentiate, and no graph kept.
std::tuple<at::Tensor, at::Tensor, at::Tensor> below_autograd(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean, int64_t k_base,
    int64_t k_min, int64_t k_max, c10::string_view budget, c10::string_view activation, int64_t query_tile,
    int64_t keep_first, int64_t keep_recent, double tile_factor, const std::optional<at::Tensor>& log_scale) {
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gsa::index_select", "").typed<SchemaFunction>();
  return op.call(index_query, index_key, head_weight, head_bias, running_mean, k_base, k_min, k_max, budget,
                 activation, query_tile, keep_first, keep_recent, tile_factor, log_scale);
}

}  // namespace

BudgetRule parse_budget_rule(std::string_view op, std::string_view name) {
  if (name == "fixed") return BudgetRule::kFixed;
  if (name == "inverse") return BudgetRule::kInverse;
  if (name == "as_printed") return BudgetRule::kAsPrinted;
  if (name == "entropy") return BudgetRule::kEntropy;
  if (name == "max_score") return BudgetRule::kMaxScore;
  if (name == "random") return BudgetRule::kRandom;
  TORCH_CHECK_VALUE(
      false, op,
      ": budget expected 'fixed', 'inverse', 'as_printed', 'entropy', 'max_score' or 'random', got '", name,
      "'");
}

int64_t selection_capacity(const IndexSelectOptions& options) {
  if (options.query_tile == 1) return options.k_max;
  return std::lrint(options.tile_factor * static_cast<double>(options.k_max)) + options.query_tile;
}

void check_index_select(const at::Tensor& index_query, const at::Tensor& index_key,
                        const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                        const std::optional<at::Tensor>& running_mean, const IndexSelectOptions& options,
                        const std::optional<at::Tensor>& log_scale) {
  check_arguments(index_query, index_key, head_weight, head_bias, running_mean, options, log_scale);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> index_select(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gsa::index_select", "").typed<SchemaFunction>();
  return op.call(index_query, index_key, head_weight, head_bias, running_mean, options.k_base, options.k_min,
                 options.k_max, options.budget, options.activation, options.query_tile, options.keep_first,
                 options.keep_recent, options.tile_factor, log_scale);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def(
      "index_select(Tensor index_query, Tensor index_key, Tensor head_weight, Tensor? head_bias, Tensor? "
      "running_mean, "
      "int k_base, int k_min, int k_max, str budget=\"inverse\", str activation=\"sigmoid\", int "
      "query_tile=1, "
      "int keep_first=0, int keep_recent=0, float tile_factor=1.5, Tensor? log_scale=None) "
      "-> (Tensor indices, Tensor counts, Tensor statistic)");
}

TORCH_LIBRARY_IMPL(gsa, Meta, library) {
  library.impl("index_select", meta);
}
TORCH_LIBRARY_IMPL(gsa, Autograd, library) {
  library.impl("index_select", below_autograd);
}

}  // namespace gsa
