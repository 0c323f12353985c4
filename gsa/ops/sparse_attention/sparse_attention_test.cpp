#include "gsa/ops/sparse_attention/sparse_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

struct Case {
  at::Tensor query, key, value, indices, counts;
  int64_t query_tile = 1;
};

/// Random rows: each position with probability `density`, ascending, padded with -1.
void fill_rows(Case& test, std::mt19937_64& generator, int64_t keys, double density) {
  std::bernoulli_distribution chosen(density);
  const int64_t batch = test.query.size(0),
                rows = (test.query.size(1) + test.query_tile - 1) / test.query_tile;
  test.indices = at::full({batch, rows, keys}, -1, at::kInt);
  test.counts = at::zeros({batch, rows}, at::kInt);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t r = 0; r < rows; ++r) {
      int64_t count = 0;
      for (int64_t s = 0; s < keys; ++s) {
        if (chosen(generator)) test.indices[b][r][count++] = s;
      }
      test.counts[b][r] = count;
    }
  }
}

Case random_case(std::mt19937_64& generator, double density) {
  const int64_t batch = testing::draw(generator, 1, 2), queries = testing::draw(generator, 1, 20),
                keys = queries + testing::draw(generator, 0, 20);
  const int64_t groups = testing::draw(generator, 1, 3), heads = groups * testing::draw(generator, 1, 4),
                dim = testing::draw(generator, 1, 24);
  Case test{at::randn({batch, queries, heads, dim}, at::kDouble),
            at::randn({batch, keys, groups, dim}, at::kDouble),
            at::randn({batch, keys, groups, dim}, at::kDouble),
            {},
            {},
            testing::draw(generator, 1, 6)};
  fill_rows(test, generator, keys, density);
  return test;
}

/// The definition as loops, fp64.
std::pair<at::Tensor, at::Tensor> oracle(const Case& test) {
  const int64_t batch = test.query.size(0), queries = test.query.size(1), heads = test.query.size(2),
                dim = test.query.size(3);
  const int64_t offset = test.key.size(1) - queries, per_group = heads / test.key.size(2);
  const at::Tensor out = at::zeros({batch, queries, heads, dim}, at::kDouble);
  const at::Tensor lse =
      at::full({batch, queries, heads}, -std::numeric_limits<double>::infinity(), at::kDouble);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < queries; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        double total = 0;
        at::Tensor sum = at::zeros({dim}, at::kDouble);
        const int64_t r = t / test.query_tile;
        for (int64_t slot = 0; slot < test.counts[b][r].item<int64_t>(); ++slot) {
          const int64_t s = test.indices[b][r][slot].item<int64_t>();
          if (s > t + offset) continue;
          const double logit = (test.query[b][t][h] * test.key[b][s][h / per_group]).sum().item<double>() /
                               std::sqrt(static_cast<double>(dim));
          total += std::exp(logit);
          sum = sum + std::exp(logit) * test.value[b][s][h / per_group];
        }
        if (total == 0) continue;
        out[b][t][h] = sum / total;
        lse[b][t][h] = std::log(total);
      }
    }
  }
  return {out, lse};
}

/// The same mathematics in plain ATen, every step in the dtype of the inputs.
at::Tensor aten_attention(const Case& test) {
  const int64_t batch = test.query.size(0), queries = test.query.size(1), keys = test.key.size(1);
  at::Tensor mask = at::zeros({batch, queries, keys}, at::kBool);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < queries; ++t) {
      const int64_t r = t / test.query_tile;
      const at::Tensor row = test.indices[b][r].slice(0, 0, test.counts[b][r].item<int64_t>()).to(at::kLong);
      mask[b][t].index_fill_(0, row, true);
      mask[b][t].slice(0, t + keys - queries + 1).fill_(false);
    }
  }
  const auto heads_first = [&](const at::Tensor& x) {
    return x.repeat_interleave(test.query.size(2) / x.size(2), 2).transpose(1, 2);
  };
  const double scale = 1.0 / std::sqrt(static_cast<double>(test.query.size(3)));
  const at::Tensor logits = heads_first(test.query).matmul(heads_first(test.key).transpose(-1, -2)) * scale;
  const at::Tensor p = logits.masked_fill(mask.logical_not().unsqueeze(1).to(logits.device()), -INFINITY)
                           .softmax(-1)
                           .nan_to_num(0);
  return p.matmul(heads_first(test.value)).transpose(1, 2);
}

void check(const Case& test) {
  const auto [out, lse] = oracle(test);
  const auto [actual, actual_lse] =
      sparse_attention(test.query, test.key, test.value, test.indices, test.counts, test.query_tile);
  EXPECT_LT(testing::max_error(actual, out), 1e-12);
  EXPECT_LT(testing::max_error(actual_lse, lse), 1e-12);
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const auto narrow = [&](const at::Tensor& x) { return x.to(device, dtype); };
      Case rounded{narrow(test.query).to(at::kDouble),
                   narrow(test.key).to(at::kDouble),
                   narrow(test.value).to(at::kDouble),
                   test.indices,
                   test.counts,
                   test.query_tile};
      const auto [exact, exact_lse] =
          sparse_attention(rounded.query.cpu(), rounded.key.cpu(), rounded.value.cpu(), test.indices,
                           test.counts, test.query_tile);
      const auto [kernel, kernel_lse] =
          sparse_attention(narrow(test.query), narrow(test.key), narrow(test.value), test.indices.to(device),
                           test.counts.to(device), test.query_tile);
      const at::Tensor plain = aten_attention({narrow(test.query), narrow(test.key), narrow(test.value),
                                               test.indices, test.counts, test.query_tile});
      EXPECT_TRUE(testing::within_tolerance(kernel, plain, exact));
      EXPECT_LT(testing::max_error(kernel_lse, exact_lse), dtype == at::kFloat ? 1e-5 : 1e-2);
    }
  }
}

TEST(SparseAttention, MatchesTheDefinitionOnRandomShapes) {
  for (int64_t trial = 0; trial < 24; ++trial) {
    auto generator = testing::case_generator(trial);
    SCOPED_TRACE("trial " + std::to_string(trial));
    check(random_case(generator, trial % 2 == 0 ? 0.6 : 0.1));
  }
}

TEST(SparseAttention, FewQueriesOverALongCache) {
  auto generator = testing::case_generator(100);
  Case test{at::randn({2, 1, 4, 16}, at::kDouble),
            at::randn({2, 300, 2, 16}, at::kDouble),
            at::randn({2, 300, 2, 16}, at::kDouble),
            {},
            {},
            1};
  fill_rows(test, generator, 300, 0.05);
  test.indices = test.indices.slice(2, 0, 30).contiguous();
  test.counts = test.counts.clamp_max(30);
  check(test);
}

TEST(SparseAttention, AllKeysEqualDenseCausalAttention) {
  const at::Tensor query = at::randn({2, 33, 6, 16}), key = at::randn({2, 33, 2, 16}),
                   value = at::randn({2, 33, 2, 16});
  auto generator = testing::case_generator(0);
  Case test{query, key, value, {}, {}, 1};
  fill_rows(test, generator, 33, 1.0);
  const auto [out, lse] = sparse_attention(query, key, value, test.indices, test.counts);
  const at::Tensor dense = at::scaled_dot_product_attention(
                               query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), {}, 0.0,
                               /*is_causal=*/true, std::nullopt, /*enable_gqa=*/true)
                               .transpose(1, 2);
  EXPECT_LT(testing::max_error(out, dense), 1e-5);
}

TEST(SparseAttention, WhatIsNotSelectedNeverMatters) {
  auto generator = testing::case_generator(7);
  Case test{at::randn({1, 12, 2, 8}), at::randn({1, 12, 1, 8}), at::randn({1, 12, 1, 8}), {}, {}, 1};
  fill_rows(test, generator, 12, 0.5);
  const auto [out, lse] = sparse_attention(test.query, test.key, test.value, test.indices, test.counts);
  const at::Tensor key = test.key.clone(), value = test.value.clone();
  for (int64_t s = 0; s < 12; ++s) {
    bool attended_by_all_but_last = false;
    for (int64_t t = 0; t < 11; ++t)
      attended_by_all_but_last |= s <= t && test.indices[0][t].eq(s).any().item<bool>();
    if (attended_by_all_but_last) continue;
    key[0][s].fill_(std::numeric_limits<float>::quiet_NaN());
    value[0][s].fill_(std::numeric_limits<float>::infinity());
  }
  key[0][11].fill_(std::numeric_limits<float>::quiet_NaN());
  const auto [poisoned, poisoned_lse] = sparse_attention(test.query, key, value, test.indices, test.counts);
  EXPECT_LT(testing::max_error(poisoned.slice(1, 0, 11), out.slice(1, 0, 11)), 1e-5);
}

TEST(SparseAttention, EmptyBatchAndNonContiguousInputs) {
  const at::Tensor empty = at::empty({0, 4, 2, 8});
  const auto [out, lse] =
      sparse_attention(empty, empty, empty, at::empty({0, 4, 3}, at::kInt), at::empty({0, 4}, at::kInt));
  EXPECT_EQ(out.sizes(), empty.sizes());
  auto generator = testing::case_generator(8);
  Case test{at::randn({2, 4, 10, 8}, at::kDouble).transpose(1, 2),
            at::randn({2, 2, 10, 8}, at::kDouble).transpose(1, 2),
            at::randn({2, 10, 2, 16}, at::kDouble).slice(3, 0, 16, 2),
            {},
            {},
            1};
  fill_rows(test, generator, 10, 0.5);
  check(test);
}

TEST(SparseAttention, RefusesBadArguments) {
  const at::Tensor query = at::randn({1, 4, 4, 8}), key = at::randn({1, 4, 2, 8});
  const at::Tensor indices = at::zeros({1, 4, 3}, at::kInt), counts = at::zeros({1, 4}, at::kInt);
  EXPECT_THROW(sparse_attention(query, at::randn({1, 4, 3, 8}), at::randn({1, 4, 3, 8}), indices, counts),
               c10::ValueError);
  EXPECT_THROW(sparse_attention(query, key, key, indices.to(at::kLong), counts), c10::TypeError);
  EXPECT_THROW(sparse_attention(query, key, key, indices, counts, 2), c10::ValueError);
  EXPECT_THROW(sparse_attention(query, key.slice(1, 0, 3), key.slice(1, 0, 3), indices, counts),
               c10::ValueError);
  EXPECT_THROW(sparse_attention(query, key, key.to(at::kDouble), indices, counts), c10::TypeError);
}

}  // namespace
}  // namespace gsa
