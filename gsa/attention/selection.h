#pragma once
// Who chooses the keys of sparse attention: the indexer, or one of the controls that evaluation compares it
// with.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace gsa {

enum class SelectionPolicy {
  indexer,
  random,  // uniform over the past, the same choice for the same (seed, layer, query, key)
  window,  // the first tokens and the most recent ones
  oracle,  // the highest true attention (joined over heads); reads the keys, so it costs dense attention
};

/// The policy of that name; throws Error for another.
SelectionPolicy parse_selection_policy(std::string_view name);

/// A choice of policy for one forward. Controls use the very number of keys that the indexer's budget gives
/// each query, or `k` for every query when it is set (then no indexer is needed).
struct SelectionOverride {
  SelectionPolicy policy = SelectionPolicy::indexer;
  std::optional<int64_t> k;
  int64_t first_tokens = 4;        // window: how many of the first tokens it holds
  std::string reduction = "mean";  // oracle: how heads are joined, mean | max
  uint64_t seed = 0;               // random
};

/// The control's selection for queries [B,T,H,E] over keys [B,S,G,E] (query t at position t + S - T), each
/// row holding min(budget, visible keys): indices int32 [B,T,max_k] ascending and padded with -1, counts
/// int32 [B,T]. budget int32 [B,T]. Works in blocks of queries: memory O(T * max_k + block * S * H).
std::tuple<at::Tensor, at::Tensor> select_control(const SelectionOverride& selection, int64_t layer,
                                                  const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& budget, int64_t max_k);

}  // namespace gsa
