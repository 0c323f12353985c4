#include "gsa/attention/config.h"

#include <algorithm>
#include <vector>

#include "gsa/base/config.h"
#include "gsa/base/error.h"

namespace gsa {
namespace {

void check_name(const char* field, const std::string& value, const std::vector<std::string>& known) {
  for (const auto& name : known) {
    if (name == value) return;
  }
  std::string list;
  for (const auto& name : known) list += (list.empty() ? "" : " | ") + name;
  fail("gsa.", field, ": expected ", list, ", got '", value, "'");
}

void check_at_least(const char* field, int64_t value, int64_t low) {
  if (value < low) fail("gsa.", field, ": expected at least ", low, ", got ", value);
}

void check_indexer(const IndexerConfig& indexer, const BudgetConfig& budget) {
  check_at_least("indexer.index_heads", indexer.index_heads, 1);
  check_at_least("indexer.index_dim", indexer.index_dim, 1);
  check_at_least("indexer.index_rotary_dim", indexer.index_rotary_dim, 0);
  check_at_least("indexer.keep_first", indexer.keep_first, 0);
  check_at_least("indexer.keep_recent", indexer.keep_recent, 0);
  check_at_least("indexer.query_tile", indexer.query_tile, 1);
  check_name("indexer.activation", indexer.activation, {"sigmoid", "hard_sigmoid", "relu"});
  check_name("indexer.head_reduction", indexer.head_reduction, {"mean", "max"});
  check_name("indexer.key_dtype", indexer.key_dtype, {"compute", "float8_e4m3fn"});
  if (indexer.index_rotary_dim > indexer.index_dim || indexer.index_rotary_dim % 2 != 0) {
    fail("gsa.indexer.index_rotary_dim: expected an even number up to index_dim ", indexer.index_dim,
         ", got ", indexer.index_rotary_dim);
  }
  if (!(indexer.tile_factor >= 1.0))
    fail("gsa.indexer.tile_factor: expected at least 1, got ", indexer.tile_factor);
  check_name("budget.rule", budget.rule,
             {"fixed", "inverse", "as_printed", "entropy", "max_score", "random"});
  check_at_least("budget.k_min", budget.k_min, 1);
  if (budget.k_min > budget.k_base || budget.k_base > budget.k_max) {
    fail("gsa.budget: expected k_min <= k_base <= k_max, got ", budget.k_min, ", ", budget.k_base, ", ",
         budget.k_max);
  }
  if (indexer.keep_first + indexer.keep_recent > budget.k_min) {
    fail("gsa.budget.k_min: expected at least keep_first + keep_recent = ",
         indexer.keep_first + indexer.keep_recent, ", got ", budget.k_min);
  }
  if (!(budget.momentum > 0.0 && budget.momentum <= 1.0)) {
    fail("gsa.budget.momentum: expected a number in (0, 1], got ", budget.momentum);
  }
}

}  // namespace

int64_t smallest_budget(const BudgetConfig& budget) {
  return budget.rule == "fixed" ? std::clamp(budget.k_base, budget.k_min, budget.k_max) : budget.k_min;
}

void apply_preset(GsaConfig& config, std::string_view preset) {
  if (preset != "paper" && preset != "recommended") {
    fail("preset: expected paper | recommended, got '", preset, "'",
         suggestion(preset, {"paper", "recommended"}));
  }
  const bool paper = preset == "paper";
  if (!config.indexer) config.indexer.emplace();
  IndexerConfig& indexer = *config.indexer;
  const IndexerConfig recommended;
  indexer.activation = paper ? "sigmoid" : recommended.activation;
  indexer.keep_first = paper ? 0 : recommended.keep_first;
  // Small models have small budgets: the kept tokens may take at most half of the smallest one.
  indexer.keep_recent =
      paper ? 0 : std::min(recommended.keep_recent, std::max<int64_t>(config.budget.k_min / 2, 1));
  indexer.keep_first = std::min(indexer.keep_first, config.budget.k_min - indexer.keep_recent);
  indexer.head_reduction = paper ? "mean" : "max";
  indexer.index_rotary_dim = indexer.index_dim / 4 * 2;
  config.budget.rule = paper ? "inverse" : "fixed";
}

void apply_variant(GsaConfig& config, std::string_view variant) {
  const std::vector<std::string> known = {"dense", "gated", "sparse", "gsa"};
  if (variant != "dense" && variant != "gated" && variant != "sparse" && variant != "gsa") {
    fail("variant: expected dense | gated | sparse | gsa, got '", variant, "'", suggestion(variant, known));
  }
  const bool gated = variant == "gated" || variant == "gsa";
  config.gates.value_gate = config.gates.output_gate = gated;
  if (variant == "dense" || variant == "gated") {
    config.indexer.reset();
    return;
  }
  if (!config.indexer) config.indexer.emplace();
  if (variant == "sparse") config.indexer->activation = "relu";
  if (variant == "gsa" && config.indexer->activation == "relu") config.indexer->activation = "hard_sigmoid";
}

std::string variant_name(const GsaConfig& config) {
  const bool gated = config.gates.value_gate || config.gates.output_gate;
  if (config.indexer) return gated ? "gsa" : "sparse";
  return gated ? "gated" : "dense";
}

void check_config(const GsaConfig& config) {
  if (!(config.gates.initial > 0.0 && config.gates.initial < 1.0)) {
    fail("gsa.gates.initial: expected a number between 0 and 1, got ", config.gates.initial);
  }
  if (config.indexer) check_indexer(*config.indexer, config.budget);
}

}  // namespace gsa
