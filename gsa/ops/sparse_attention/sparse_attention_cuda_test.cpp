// The CUDA kernels against the reference, on the shapes where they differ: tiles, group sizes, walks. The
// reference itself is judged by sparse_attention_test.cpp.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gsa/base/device.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"
#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

enum class Counts { kFull, kMixed, kOftenEmpty };

struct Shape {
  int64_t batch, queries, keys, heads, groups, dim, capacity, query_tile;
  Counts counts = Counts::kFull;
};

std::string name_of(const Shape& s) {
  return "B " + std::to_string(s.batch) + " T " + std::to_string(s.queries) + " S " + std::to_string(s.keys) +
         " H " + std::to_string(s.heads) + " G " + std::to_string(s.groups) + " E " + std::to_string(s.dim) +
         " K " + std::to_string(s.capacity) + " query_tile " + std::to_string(s.query_tile);
}

struct Inputs {
  at::Tensor query, key, value, indices, counts;
  int64_t query_tile;
};

std::tuple<at::Tensor, at::Tensor> run(const Inputs& in) {
  return sparse_attention(in.query, in.key, in.value, in.indices, in.counts, in.query_tile);
}

/// Rows of distinct random keys; the future is among them, so that the kernels have to hide it.
std::pair<at::Tensor, at::Tensor> random_rows(const Shape& s, at::Device device) {
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  const auto ints = at::TensorOptions(device).dtype(at::kInt);
  const int64_t rows = (s.queries + s.query_tile - 1) / s.query_tile, held = std::min(s.capacity, s.keys);
  const at::Tensor chosen =
      std::get<1>(at::rand({s.batch, rows, s.keys}, floats).topk(held, -1, true, false)).to(at::kInt);
  at::Tensor counts = at::full({s.batch, rows}, held, ints);
  if (s.counts != Counts::kFull) counts = at::randint(0, held + 1, {s.batch, rows}, ints);
  if (s.counts == Counts::kOftenEmpty) counts = counts * at::randint(0, 2, {s.batch, rows}, ints);
  const at::Tensor kept = at::arange(held, ints).lt(counts.unsqueeze(-1));
  const at::Tensor sorted =
      std::get<0>(at::where(kept, chosen, at::full_like(chosen, static_cast<int>(s.keys))).sort(-1));
  at::Tensor indices = at::full({s.batch, rows, s.capacity}, -1, ints);
  indices.slice(2, 0, held).copy_(at::where(sorted.lt(s.keys), sorted, at::full_like(sorted, -1)));
  return {indices, counts};
}

Inputs random_inputs(const Shape& s, at::ScalarType dtype) {
  const at::Device device(at::kCUDA, 0);
  const auto options = at::TensorOptions(device).dtype(at::kFloat);
  const auto [indices, counts] = random_rows(s, device);
  return {at::randn({s.batch, s.queries, s.heads, s.dim}, options).to(dtype),
          at::randn({s.batch, s.keys, s.groups, s.dim}, options).to(dtype),
          at::randn({s.batch, s.keys, s.groups, s.dim}, options).to(dtype),
          indices,
          counts,
          s.query_tile};
}

/// fp64, by the reference.
std::tuple<at::Tensor, at::Tensor> exact(const Inputs& in) {
  return sparse_attention_reference(in.query.to(at::kDouble), in.key.to(at::kDouble),
                                    in.value.to(at::kDouble), in.indices, in.counts, in.query_tile,
                                    std::nullopt);
}

/// The same mathematics in plain ATen, every step in the dtype of the inputs.
at::Tensor plain(const Inputs& in) {
  const int64_t batch = in.query.size(0), queries = in.query.size(1), keys = in.key.size(1);
  const auto longs = in.indices.options().dtype(at::kLong);
  const at::Tensor slot = at::arange(in.indices.size(2), longs);
  const at::Tensor column =
      at::where(slot.lt(in.counts.unsqueeze(-1)), in.indices.to(at::kLong), at::full({1}, keys, longs));
  const at::Tensor rows =
      at::zeros({batch, in.indices.size(1), keys + 1}, longs.dtype(at::kBool)).scatter_(2, column, true);
  const at::Tensor query_row = at::arange(queries, longs).floor_divide(in.query_tile);
  const at::Tensor past =
      at::arange(keys, longs).unsqueeze(0).le((at::arange(queries, longs) + (keys - queries)).unsqueeze(1));
  const at::Tensor mask = rows.index_select(1, query_row).slice(2, 0, keys).logical_and(past);
  const auto heads_first = [&](const at::Tensor& x) {
    return x.repeat_interleave(in.query.size(2) / x.size(2), 2).transpose(1, 2);
  };
  const double scale = 1.0 / std::sqrt(static_cast<double>(in.query.size(3)));
  const at::Tensor logits = heads_first(in.query).matmul(heads_first(in.key).transpose(-1, -2)) * scale;
  const at::Tensor p =
      logits.masked_fill(mask.logical_not().unsqueeze(1), -INFINITY).softmax(-1).nan_to_num(0);
  return p.matmul(heads_first(in.value)).transpose(1, 2);
}

void check(const Shape& shape, at::ScalarType dtype = at::kBFloat16) {
  SCOPED_TRACE(name_of(shape));
  const Inputs in = random_inputs(shape, dtype);
  const auto [out, lse] = run(in);
  const auto [exact_out, exact_lse] = exact(in);
  EXPECT_EQ(out.scalar_type(), dtype);
  EXPECT_EQ(lse.scalar_type(), at::kFloat);
  EXPECT_TRUE(testing::within_tolerance(out, plain(in), exact_out));
  EXPECT_LT(testing::max_error(lse, exact_lse), 1e-4);
  const auto [again, lse_again] = run(in);
  EXPECT_TRUE(testing::same_elements(out, again));
  EXPECT_TRUE(testing::same_elements(lse, lse_again));
}

class SparseAttentionCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::test_devices();  // fails where a GPU is required and absent
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
    at::Generator generator = at::globalContext().defaultGenerator(at::Device(at::kCUDA, 0));
    generator.set_current_seed(testing::run_seed());
  }
};

TEST_F(SparseAttentionCuda, EdgesOfTilesAndRows) {
  for (const int64_t tile : {1, 64}) {
    check({1, 9, 9, 4, 1, 128, 4, tile});
    check({2, 70, 333, 8, 2, 128, 64, tile});
    check({1, 257, 300, 16, 4, 64, 100, tile});
    check({1, 256, 256, 4, 1, 128, 256, tile});  // every key: dense causal attention
    check({2, 200, 300, 8, 2, 128, 48, tile, Counts::kMixed});
    check({2, 200, 300, 8, 2, 64, 47, tile, Counts::kOftenEmpty});
    check({1, 65, 1000, 4, 4, 128, 1, tile});
  }
}

TEST_F(SparseAttentionCuda, FewQueriesOverALongCache) {
  for (const int64_t tile : {1, 64}) {
    for (const int64_t queries : {1, 3, 8}) check({3, queries, 2000, 16, 4, 128, 700, tile, Counts::kMixed});
    check({2, 2, 700, 9, 3, 64, 300, tile, Counts::kOftenEmpty});
  }
  for (int64_t group = 1; group <= 16; ++group) check({2, 2, 600, 2 * group, 2, 128, 90, 1, Counts::kMixed});
  check({1, 1, 1, 16, 4, 128, 64, 1});
  check({1, 1, 200000, 16, 4, 128, 2048, 1});
  check({40, 1, 1500, 16, 4, 128, 1024, 1});
}

TEST_F(SparseAttentionCuda, ViewsOfALargerCache) {
  Inputs in = random_inputs({3, 2, 900, 16, 4, 128, 200, 1}, at::kBFloat16);
  const auto [expected, expected_lse] = run(in);
  for (at::Tensor* x : {&in.key, &in.value}) {
    at::Tensor cache = at::full({3, 2048, 4, 128}, NAN, x->options());
    cache.slice(1, 0, 900).copy_(*x);
    *x = cache.slice(1, 0, 900);
  }
  const auto [out, lse] = run(in);
  EXPECT_TRUE(testing::same_elements(out, expected));
  EXPECT_TRUE(testing::same_elements(lse, expected_lse));
}

TEST_F(SparseAttentionCuda, EveryGroupSize) {
  for (int64_t group = 1; group <= 16; ++group) {
    check({1, 130, 400, 2 * group, 2, 64, 50, group % 2 == 0 ? 1 : 64, Counts::kMixed});
    check({1, 130, 400, group, 1, 128, 50, group % 2 == 0 ? 64 : 1, Counts::kMixed});
  }
}

TEST_F(SparseAttentionCuda, LongWalks) {
  check({1, 1000, 4096, 8, 2, 128, 512, 1});
  check({1, 300, 40000, 4, 1, 128, 300, 1});  // several ranges of keys
  check({1, 70, 1 << 20, 2, 1, 64, 64, 1});
  check({1, 128, 1 << 18, 2, 1, 64, 1000, 64});
}

TEST_F(SparseAttentionCuda, MoreKeysThanAUsualWalkHolds) {
  check({1, 200, 40000, 4, 1, 64, 700, 1});
  check({2, 150, 70000, 8, 2, 128, 1500, 1, Counts::kMixed});  // several segments; some tiles overflow
  check({1, 97, 20000, 2, 2, 128, 1000, 1});
  check({1, 50, 30000, 12, 1, 64, 1001, 1, Counts::kOftenEmpty});
  check({1, 49, 50000, 10, 1, 128, 3000, 1});
}

TEST_F(SparseAttentionCuda, RoundsOfLongWalksEqualTilesAlone) {
  // 130 tiles of 64 queries: long walks for all would need twice the workspace. A tile's result depends
  // neither on its company nor on the round. Every third tile fits a usual walk.
  constexpr int64_t kQueries = int64_t{130} * 64, kKeys = 131072, kCapacity = 2048,
                    kStride = kKeys / kCapacity;
  const auto floats = at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(at::kFloat);
  const auto ints = floats.dtype(at::kInt);
  const auto random = [&](int64_t tokens) { return at::randn({1, tokens, 2, 64}, floats).to(at::kBFloat16); };
  const at::Tensor tile = at::arange(kQueries, ints).floor_divide(64).view({1, kQueries, 1});
  const at::Tensor shift = at::where(tile.remainder(3).eq(1), tile.remainder(kStride),
                                     at::randint(0, kStride, {1, kQueries, kCapacity}, ints));
  const Inputs in{random(kQueries),
                  random(kKeys),
                  random(kKeys),
                  (at::arange(kCapacity, ints) * kStride + shift).to(at::kInt),
                  at::full({1, kQueries}, kCapacity, ints),
                  1};
  const auto [out, lse] = run(in);
  for (const int64_t first : {0, 1, 64, 100, 129}) {
    SCOPED_TRACE("tile " + std::to_string(first));
    const int64_t begin = first * 64, end = begin + 64, keys = kKeys - kQueries + end;
    const at::Tensor rows = in.indices.slice(1, begin, end), held = rows.lt(keys);
    const Inputs alone{in.query.slice(1, begin, end), in.key.slice(1, 0, keys),
                       in.value.slice(1, 0, keys),    at::where(held, rows, at::full_like(rows, -1)),
                       held.sum(-1, false, at::kInt), 1};
    const auto [alone_out, alone_lse] = run(alone);
    EXPECT_TRUE(testing::same_elements(alone_out, out.slice(1, begin, end)));
    EXPECT_TRUE(testing::same_elements(alone_lse, lse.slice(1, begin, end)));
    const auto [exact_out, exact_lse] = exact(alone);
    EXPECT_TRUE(testing::within_tolerance(alone_out, plain(alone), exact_out));
    EXPECT_LT(testing::max_error(alone_lse, exact_lse), 1e-4);
  }
}

TEST_F(SparseAttentionCuda, SelectionsThatFollowTheQuery) {
  // Neighbouring queries that choose different regions: whole blocks of a walk concern some queries only.
  const Shape shape{1, 640, 4000, 8, 2, 128, 96, 1};
  Inputs in = random_inputs(shape, at::kBFloat16);
  const auto ints = in.indices.options();
  const at::Tensor region = at::arange(640, ints).floor_divide(16).mul(211).remainder(3000).view({1, 640, 1});
  in.indices = region + at::arange(96, ints) * 3;
  in.counts.fill_(96);
  const auto [out, lse] = run(in);
  const auto [exact_out, exact_lse] = exact(in);
  EXPECT_TRUE(testing::within_tolerance(out, plain(in), exact_out));
  EXPECT_LT(testing::max_error(lse, exact_lse), 1e-4);
}

TEST_F(SparseAttentionCuda, ScoresThatRiseAlongTheRow) {
  // Later keys have far higher scores, beyond what probabilities relative to the first block's maximum hold.
  for (const Shape& shape :
       {Shape{1, 200, 1000, 8, 2, 128, 300, 1}, Shape{1, 200, 1000, 8, 2, 128, 300, 64},
        Shape{1, 200, 1000, 2, 2, 64, 300, 64}, Shape{1, 100, 1000, 16, 1, 64, 300, 1}}) {
    SCOPED_TRACE(name_of(shape));
    Inputs in = random_inputs(shape, at::kBFloat16);
    const at::Tensor rise = at::arange(1, shape.keys + 1, in.key.options().dtype(at::kFloat)) * (12.0 / 1000);
    in.key = in.key.mul(rise.view({1, shape.keys, 1, 1})).to(at::kBFloat16);
    const auto [out, lse] = run(in);
    const auto [exact_out, exact_lse] = exact(in);
    EXPECT_TRUE(testing::within_tolerance(out, plain(in), exact_out));
    EXPECT_LT(testing::max_error(lse, exact_lse), 1e-3);
  }
}

TEST_F(SparseAttentionCuda, NanOutsideARowStaysOutside) {
  for (const Shape& shape : {Shape{1, 128, 512, 8, 2, 128, 40, 1}, Shape{1, 128, 512, 8, 2, 128, 40, 64},
                             Shape{1, 128, 40000, 8, 2, 128, 1200, 1}}) {
    SCOPED_TRACE(name_of(shape));
    Inputs in = random_inputs(shape, at::kBFloat16);
    // The last key lies in the future of all queries but the last; every row gets it as its last entry.
    in.indices.select(2, shape.capacity - 1).fill_(static_cast<int>(shape.keys - 1));
    Inputs clean = in;
    clean.value = in.value.clone();
    in.value.select(1, shape.keys - 1).fill_(std::nan(""));
    const at::Tensor out = std::get<0>(run(in)), expected = std::get<0>(run(clean));
    EXPECT_FALSE(out.slice(1, 0, 127).isnan().any().item<bool>());
    EXPECT_TRUE(out.select(1, 127).isnan().all().item<bool>());
    EXPECT_LT(testing::max_error(out.slice(1, 0, 127), expected.slice(1, 0, 127)), 3e-2);
  }
}

TEST_F(SparseAttentionCuda, TakesStridedInputs) {
  Inputs in = random_inputs({2, 100, 200, 8, 2, 64, 32, 1}, at::kBFloat16);
  const auto [out, lse] = run(in);
  Inputs strided = in;
  strided.query = in.query.transpose(1, 2).contiguous().transpose(1, 2);
  strided.key = in.key.transpose(1, 2).contiguous().transpose(1, 2);
  strided.value = at::full({2, 200, 2, 128}, NAN, in.value.options()).slice(3, 0, 64).copy_(in.value);
  const auto [strided_out, strided_lse] = run(strided);
  EXPECT_TRUE(testing::same_elements(out, strided_out));
  EXPECT_TRUE(testing::same_elements(lse, strided_lse));
}

TEST_F(SparseAttentionCuda, OtherTypesAndShapesFallBack) {
  for (const auto dtype : {at::kFloat, at::kHalf}) {
    for (const int64_t dim : {32, 64, 128, 256}) check({1, 40, 100, 6, 2, dim, 30, 1, Counts::kMixed}, dtype);
  }
  check({1, 40, 100, 4, 2, 24, 30, 1, Counts::kMixed});   // a dimension without a kernel
  check({1, 40, 100, 34, 2, 64, 30, 1, Counts::kMixed});  // 17 heads a group
  check({1, 40, 100, 4, 2, 64, 30, 16, Counts::kMixed});  // rows for 16 queries
}

TEST_F(SparseAttentionCuda, BatchRowsAreIndependent) {
  const Inputs in = random_inputs({3, 90, 150, 4, 2, 128, 40, 1, Counts::kMixed}, at::kBFloat16);
  const at::Tensor whole = std::get<0>(run(in));
  for (int64_t b = 0; b < 3; ++b) {
    const auto row = [b](const at::Tensor& x) { return x.slice(0, b, b + 1); };
    const Inputs alone{row(in.query), row(in.key), row(in.value), row(in.indices), row(in.counts), 1};
    EXPECT_TRUE(testing::same_elements(std::get<0>(run(alone)), row(whole)));
  }
}

}  // namespace
}  // namespace gsa
