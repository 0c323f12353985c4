// A user's own program: attention over the best eight keys of each query.
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>

#include <cstdio>

#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"

int main() {
  gsa::IndexSelectOptions options;
  options.budget = "fixed";
  options.k_base = options.k_min = options.k_max = 8;
  const auto [indices, counts, statistic] =
      gsa::index_select(at::randn({1, 64, 4, 16}), at::randn({1, 64, 16}), at::rand({1, 64, 4}), std::nullopt,
                        std::nullopt, options);
  const at::Tensor key = at::randn({1, 64, 2, 32});
  const auto [out, lse] = gsa::sparse_attention(at::randn({1, 64, 4, 32}), key, key, indices, counts);
  std::printf("%lld keys, finite %d\n", static_cast<long long>(counts[0][63].item<int64_t>()),
              static_cast<int>(out.isfinite().all().item<bool>()));
  return 0;
}
