// The CUDA kernel of rotary_append, run on the CPU by the emulation, against fp64.
#include "gsa/testing/cuda_emulation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <limits>

#include "gsa/ops/rotary_append/rotary_append.h"
#include "gsa/ops/rotary_append/rotary_append_problem.h"
#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

// The library has the same functions as compiled by nvcc: these must not take their place.
#pragma GCC visibility push(hidden)
#include "gsa/ops/rotary_append/rotary_append_generic.cu"
#pragma GCC visibility pop

namespace gsa {
namespace {

/// 5 new tokens of 2 sequences, and the middle of caches that hold 7 elsewhere.
struct Problem {
  NewTokens tokens;
  CachePlaces places;
  at::Tensor key_cache, value_cache, index_cache;
};

Problem random_problem(at::ScalarType dtype, int64_t dim, int64_t half, int64_t index_half,
                       bool float8 = false) {
  constexpr int64_t kBatch = 2, kTokens = 5, kHeads = 6, kKeyHeads = 3, kIndexHeads = 2;
  const auto numbers = [&](at::IntArrayRef sizes) { return (at::randn(sizes) * 2).to(dtype); };
  const auto cache = [&](at::IntArrayRef sizes) { return at::full(sizes, 7, at::kFloat).to(dtype); };
  Problem p;
  NewTokens& t = p.tokens;
  t.query = numbers({kBatch, kTokens, kHeads, dim});
  t.index_query = numbers({kBatch, kTokens, kIndexHeads, dim});
  t.key = numbers({kBatch, kTokens, kKeyHeads, dim});
  t.value = numbers({kBatch, kTokens, kKeyHeads, dim});
  t.value_gate = numbers({kBatch, kTokens, kKeyHeads, dim});
  t.index_key = numbers({kBatch, kTokens, dim}) * 50;  // some saturate in e4m3
  const at::Tensor angle = at::rand({kTokens, half}) * 200,
                   index_angle = at::rand({kTokens, index_half}) * 200;
  t.cos = angle.cos(), t.sin = angle.sin();
  t.index_cos = index_angle.cos(), t.index_sin = index_angle.sin();
  p.key_cache = cache({kBatch, 9, kKeyHeads, dim});
  p.value_cache = cache({kBatch, 9, kKeyHeads, dim});
  p.index_cache = cache({kBatch, 9, dim});
  if (float8) p.index_cache = p.index_cache.to(at::kFloat8_e4m3fn);
  const auto place = [](const at::Tensor& x) { return x.narrow(1, 2, kTokens); };
  p.places = {place(p.key_cache), place(p.value_cache), place(p.index_cache)};
  return p;
}

/// The same numbers in memory of their own, of another dtype if that is said.
Problem copy_of(const Problem& p, at::ScalarType dtype) {
  const auto copy = [&](const at::Tensor& x) {
    return x.defined() ? x.to(dtype, /*non_blocking=*/false, /*copy=*/true) : x;
  };
  Problem q = p;
  for (at::Tensor* x : {&q.tokens.query, &q.tokens.index_query, &q.tokens.key, &q.tokens.value,
                        &q.tokens.value_gate, &q.tokens.index_key, &q.places.key, &q.places.value})
    *x = copy(*x);
  q.places.index_key = q.tokens.index_key.clone();
  if (dtype != at::kDouble) return q;
  for (at::Tensor* table : {&q.tokens.cos, &q.tokens.sin, &q.tokens.index_cos, &q.tokens.index_sin})
    *table = copy(*table);
  return q;
}

void check_emulated(const Problem& p) {
  const auto dtype = p.tokens.key.scalar_type();
  const Problem same = copy_of(p, dtype), exact = copy_of(p, at::kDouble);
  rotary_append_reference(same.tokens, same.places);
  rotary_append_reference(exact.tokens, exact.places);
  ASSERT_EQ(launch_rotary_append(rotary_append_params(p.tokens, p.places), nullptr), cudaSuccess);
  const auto near = [](const at::Tensor& out, const at::Tensor& reference, const at::Tensor& truth) {
    return testing::within_tolerance(out, reference, truth);
  };
  EXPECT_TRUE(near(p.tokens.query, same.tokens.query, exact.tokens.query));
  EXPECT_TRUE(near(p.tokens.index_query, same.tokens.index_query, exact.tokens.index_query));
  EXPECT_TRUE(near(p.places.key, same.places.key, exact.places.key));
  EXPECT_TRUE(near(p.places.value, same.places.value, exact.places.value));
  if (p.places.index_key.scalar_type() == dtype) {
    EXPECT_TRUE(near(p.places.index_key, same.places.index_key, exact.places.index_key));
  }
  for (const at::Tensor& cache : {p.key_cache, p.value_cache, p.index_cache}) {
    const at::Tensor numbers = cache.to(at::kFloat);
    EXPECT_TRUE(numbers.slice(1, 0, 2).eq(7).all().item<bool>());
    EXPECT_TRUE(numbers.slice(1, 7).eq(7).all().item<bool>());
  }
}

class RotaryAppendEmulated : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(testing::run_seed()); }
};

TEST_F(RotaryAppendEmulated, MatchesFp64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    check_emulated(random_problem(dtype, 64, 32, 16));
    check_emulated(random_problem(dtype, 24, 8, 0));
    check_emulated(random_problem(dtype, 10, 5, 3));  // an element at a time
    Problem scaled = random_problem(dtype, 32, 16, 8);
    scaled.tokens.gate_scale = 2;
    check_emulated(scaled);
    Problem views = random_problem(dtype, 32, 16, 8);  // one projection to all heads, not aligned
    const at::Tensor fused = at::randn({2, 5, 12, 40}).to(dtype);
    views.tokens.query = fused.narrow(2, 0, 6).narrow(3, 3, 32);
    views.tokens.key = fused.narrow(2, 6, 3).narrow(3, 8, 32);
    views.tokens.value = fused.narrow(2, 9, 3).narrow(3, 0, 32);
    check_emulated(views);
  }
}

TEST_F(RotaryAppendEmulated, Float8KeysAreTheRoundedOnes) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Problem plain = random_problem(dtype, 64, 32, 16);
    const at::Tensor key = plain.tokens.index_key[0][0];
    key[60] = std::numeric_limits<float>::infinity();
    key[61] = std::numeric_limits<float>::quiet_NaN();
    Problem float8 = random_problem(dtype, 64, 32, 16, true);
    float8.tokens.index_key = plain.tokens.index_key;
    float8.tokens.index_cos = plain.tokens.index_cos;
    float8.tokens.index_sin = plain.tokens.index_sin;
    ASSERT_EQ(launch_rotary_append(rotary_append_params(plain.tokens, plain.places), nullptr), cudaSuccess);
    check_emulated(float8);
    EXPECT_TRUE(testing::same_elements(float8.places.index_key,
                                       plain.places.index_key.clamp(-448, 448).to(at::kFloat8_e4m3fn)));
  }
}

TEST_F(RotaryAppendEmulated, PartsMayBeAbsent) {
  Problem p = random_problem(at::kBFloat16, 32, 16, 8);
  p.tokens.value_gate = at::Tensor();
  p.tokens.cos = p.tokens.sin = at::Tensor();
  check_emulated(p);
  p = random_problem(at::kBFloat16, 32, 16, 8);
  p.tokens.index_cos = p.tokens.index_sin = at::Tensor();
  check_emulated(p);
}

}  // namespace
}  // namespace gsa
