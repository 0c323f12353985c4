#pragma once
// What a gated sparse attention layer is made of. Plain structs, torch-free; the JSON names are the field
// names.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace gsa {

/// The two gates (paper 3.2). `initial` is the value the sigmoids start at. With `identity` a gate is 2 *
/// sigmoid(x) with zero weights, so that a converted dense model starts unchanged.
struct GateConfig {
  bool value_gate = true;   // G2: on the values, before the cache write
  bool output_gate = true;  // G1: on the attention's output, per head channel
  double initial = 0.5;
  bool identity = false;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("value_gate", value_gate);
    field("output_gate", output_gate);
    field("initial", initial);
    field("identity", identity);
  }
};

/// The gated lightning indexer (paper Eq. 7) and how its scores become a selection. Defaults: the
/// `recommended` preset.
struct IndexerConfig {
  int64_t index_heads = 4;
  int64_t index_dim = 64;
  int64_t index_rotary_dim = 32;  // leading dimensions that carry positions; 0: none
  std::string activation =
      "hard_sigmoid";      // sigmoid | hard_sigmoid | relu (relu: raw head weights, no head bias)
  int64_t keep_first = 4;  // positions selected whatever their score, inside the budget
  int64_t keep_recent = 128;
  std::string head_reduction = "max";  // how the KL's target joins the attention heads: max | mean
  int64_t query_tile = 1;              // queries that share one selection; 1 is the paper
  double tile_factor = 1.5;
  // What index keys are rounded to and cached in: compute (the model's dtype) | float8_e4m3fn (half the bytes
  // that decoding reads to select). Training, prefill and decoding all see the rounded keys.
  std::string key_dtype = "compute";
  template <class Visitor>
  void fields(Visitor&& field) {
    field("index_heads", index_heads);
    field("index_dim", index_dim);
    field("index_rotary_dim", index_rotary_dim);
    field("activation", activation);
    field("keep_first", keep_first);
    field("keep_recent", keep_recent);
    field("head_reduction", head_reduction);
    field("query_tile", query_tile);
    field("tile_factor", tile_factor);
    field("key_dtype", key_dtype);
  }
};

/// How many keys a query attends to (paper 3.4).
struct BudgetConfig {
  std::string rule = "fixed";  // fixed | inverse | as_printed | entropy | max_score | random
  int64_t k_base = 2048;
  int64_t k_min = 256;
  int64_t k_max = 4096;
  double momentum = 0.01;  // of the running mean: mean += momentum * (this step's mean - mean)
  template <class Visitor>
  void fields(Visitor&& field) {
    field("rule", rule);
    field("k_base", k_base);
    field("k_min", k_min);
    field("k_max", k_max);
    field("momentum", momentum);
  }
};

/// The smallest k_t that the rule can give to a query with enough keys before it.
int64_t smallest_budget(const BudgetConfig& budget);

/// Everything beyond a plain Llama layer. The variants are its two switches: gates on or off, indexer present
/// or not.
struct GsaConfig {
  GateConfig gates;
  std::optional<IndexerConfig> indexer = IndexerConfig{};
  BudgetConfig budget;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("gates", gates);
    field("indexer", indexer);
    field("budget", budget);
  }
};

/// Sets what the preset decides and leaves sizes (heads, dimensions, k) alone. `paper`: sigmoid, no kept
/// tokens, mean over heads, `inverse` budget. `recommended`: hard sigmoid, 4 + 128 kept tokens, maximum over
/// heads, rotary on half the dimensions, fixed budget. Adds an indexer where there is none. Throws Error for
/// another name.
void apply_preset(GsaConfig& config, std::string_view preset);

/// Sets the two switches for `dense`, `gated`, `sparse` (ReLU indexer, no gates) or `gsa`. Throws Error
/// otherwise.
void apply_variant(GsaConfig& config, std::string_view variant);

/// The name of the variant that the two switches spell.
std::string variant_name(const GsaConfig& config);

/// Checks values and combinations; throws Error naming the field ("gsa.budget.k_min: expected ..., got ...").
void check_config(const GsaConfig& config);

}  // namespace gsa
