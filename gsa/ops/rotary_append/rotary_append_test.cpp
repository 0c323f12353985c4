#include "gsa/ops/rotary_append/rotary_append.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "gsa/ops/rotary/rotary.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"
#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

constexpr double kUntouched = 7;  // what a cache holds where nothing was written
constexpr int64_t kBegin = 3;     // the first new token's place

struct Sizes {
  int64_t batch = 1, tokens = 1, heads = 2, key_heads = 1, dim = 8, half = 4;
  int64_t index_heads = 2, index_dim = 8, index_half = 4;
};

/// Tokens and the caches they go to.
struct Case {
  NewTokens tokens;
  CachePlaces caches;  // whole

  CachePlaces places() const {
    const auto place = [&](const at::Tensor& cache) {
      return cache.defined() ? cache.narrow(1, kBegin, tokens.key.size(1)) : cache;
    };
    return {place(caches.key), place(caches.value), place(caches.index_key)};
  }
};

Case random_case(const Sizes& s, const at::Device& device, at::ScalarType dtype, bool float8) {
  const auto numbers = [&](at::IntArrayRef sizes) { return (at::randn(sizes) * 2).to(device, dtype); };
  const auto cache = [&](at::IntArrayRef sizes) {
    return at::full(sizes, kUntouched, at::kFloat).to(device, dtype);
  };
  const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t capacity = kBegin + s.tokens + 2;
  Case c;
  NewTokens& t = c.tokens;
  t.query = numbers({s.batch, s.tokens, s.heads, s.dim});
  t.index_query = numbers({s.batch, s.tokens, s.index_heads, s.index_dim});
  t.key = numbers({s.batch, s.tokens, s.key_heads, s.dim});
  t.value = numbers({s.batch, s.tokens, s.key_heads, s.dim});
  t.value_gate = numbers({s.batch, s.tokens, s.key_heads, s.dim});
  t.index_key = numbers({s.batch, s.tokens, s.index_dim}) * 50;  // some saturate in e4m3
  const at::Tensor angle = at::rand({s.tokens, s.half}, at::kDouble) * 200;
  const at::Tensor index_angle = at::rand({s.tokens, s.index_half}, at::kDouble) * 200;
  t.cos = angle.cos().to(device, wide);
  t.sin = angle.sin().to(device, wide);
  t.index_cos = index_angle.cos().to(device, wide);
  t.index_sin = index_angle.sin().to(device, wide);
  c.caches = {cache({s.batch, capacity, s.key_heads, s.dim}), cache({s.batch, capacity, s.key_heads, s.dim}),
              cache({s.batch, capacity, s.index_dim})};
  if (float8) c.caches.index_key = c.caches.index_key.to(at::kFloat8_e4m3fn);
  return c;
}

at::Tensor turned(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return x.defined() && cos.defined() ? rotary(x, cos, sin) : x;
}

void check_untouched(const at::Tensor& cache, int64_t tokens) {
  const at::Tensor numbers = cache.cpu().to(at::kDouble);
  EXPECT_TRUE(numbers.slice(1, 0, kBegin).eq(kUntouched).all().item<bool>());
  EXPECT_TRUE(numbers.slice(1, kBegin + tokens).eq(kUntouched).all().item<bool>());
}

/// Against the separate ops, and nothing else written.
void check_case(const Case& c) {
  const NewTokens& t = c.tokens;
  const CachePlaces places = c.places();
  const at::Tensor query = turned(t.query, t.cos, t.sin), key = turned(t.key, t.cos, t.sin);
  const at::Tensor value =
      t.value_gate.defined() ? sigmoid_gate(t.value, t.value_gate) * t.gate_scale : t.value;
  const at::Tensor index_query = turned(t.index_query, t.index_cos, t.index_sin);
  rotary_append(t, places);
  if (query.defined()) {
    EXPECT_TRUE(testing::same_elements(t.query, query));
  }
  EXPECT_TRUE(testing::same_elements(places.key, key));
  EXPECT_TRUE(testing::same_elements(places.value, value));
  check_untouched(c.caches.key, t.key.size(1));
  check_untouched(c.caches.value, t.key.size(1));
  if (!t.index_key.defined()) return;
  at::Tensor index_key = turned(t.index_key.unsqueeze(2), t.index_cos, t.index_sin).squeeze(2);
  if (places.index_key.scalar_type() == at::kFloat8_e4m3fn)
    index_key = index_key.clamp(-448, 448).to(at::kFloat8_e4m3fn);
  if (index_query.defined()) {
    EXPECT_TRUE(testing::same_elements(t.index_query, index_query));
  }
  EXPECT_TRUE(testing::same_elements(places.index_key, index_key));
  check_untouched(c.caches.index_key, t.key.size(1));
}

TEST(RotaryAppend, EqualsTheSeparateOps) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      auto generator = testing::case_generator(static_cast<uint64_t>(dtype));
      const auto draw = [&](int64_t low, int64_t high) { return testing::draw(generator, low, high); };
      for (int64_t trial = 0; trial < 16; ++trial) {
        const int64_t unit = trial % 4 == 3 ? 1 : 8;  // 1: read an element at a time
        Sizes s;
        s.batch = draw(1, 4);
        s.tokens = trial % 3 == 0 ? 1 : draw(1, 60);
        s.heads = draw(1, 9);
        s.key_heads = draw(1, 5);
        s.dim = 2 * unit * draw(1, 8);
        s.half = unit * draw(0, s.dim / 2 / unit);
        s.index_heads = draw(1, 5);
        s.index_dim = 2 * unit * draw(1, 4);
        s.index_half = unit * draw(0, s.index_dim / 2 / unit);
        Case c = random_case(s, device, dtype, trial % 2 == 1);
        c.tokens.gate_scale = 1 + static_cast<double>(trial % 2);
        check_case(c);
      }
    }
  }
}

TEST(RotaryAppend, PartsMayBeAbsent) {
  for (const auto& device : testing::test_devices()) {
    const auto without = [&](const std::function<void(Case&)>& remove) {
      Case c = random_case({2, 5, 6, 3, 16, 8, 2, 16, 8}, device, at::kBFloat16, false);
      remove(c);
      check_case(c);
    };
    without([](Case& c) { c.tokens.query = at::Tensor(); });
    without([](Case& c) { c.tokens.index_query = at::Tensor(); });
    without([](Case& c) { c.tokens.value_gate = at::Tensor(); });
    without([](Case& c) { c.tokens.cos = c.tokens.sin = at::Tensor(); });
    without([](Case& c) { c.tokens.index_cos = c.tokens.index_sin = at::Tensor(); });
    without([](Case& c) {
      c.tokens.index_query = c.tokens.index_key = c.caches.index_key = at::Tensor();
      c.tokens.index_cos = c.tokens.index_sin = at::Tensor();
    });
  }
}

TEST(RotaryAppend, NoTokens) {
  for (const auto& device : testing::test_devices()) {
    check_case(random_case({2, 0, 6, 3, 16, 8, 2, 16, 8}, device, at::kBFloat16, true));
  }
}

TEST(RotaryAppend, ReadsAndWritesStridedViews) {
  for (const auto& device : testing::test_devices()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const Sizes sizes{2, 5, 4, 3, 16, 8, 2, 16, 8};
      Case c = random_case(sizes, device, dtype, true);
      const at::Tensor fused = at::randn({2, 5, 13, 24}).to(device, dtype);  // one projection to all heads
      c.tokens.query = fused.narrow(2, 9, 4).narrow(3, 0, 16);
      c.tokens.key = fused.narrow(2, 0, 3).narrow(3, 0, 16);
      c.tokens.value = fused.narrow(2, 3, 3).narrow(3, 8, 16);
      c.tokens.value_gate = fused.narrow(2, 6, 3).narrow(3, 5, 16);  // not 16-byte aligned
      const at::Tensor others = fused.narrow(2, 0, 9).clone();
      check_case(c);
      EXPECT_TRUE(others.equal(fused.narrow(2, 0, 9)));
      c = random_case(sizes, device, dtype, false);
      c.caches.key = at::full({2, 3, 10, 16}, kUntouched, at::kFloat).to(device, dtype).transpose(1, 2);
      check_case(c);
      c = random_case(sizes, device, dtype, false);  // rows that are not contiguous
      c.caches.value = at::full({2, 10, 16, 3}, kUntouched, at::kFloat).to(device, dtype).transpose(2, 3);
      c.tokens.key = at::randn({2, 5, 16, 3}).to(device, dtype).transpose(2, 3);
      check_case(c);
    }
  }
}

TEST(RotaryAppend, Float8SaturatesAndKeepsNaN) {
  for (const auto& device : testing::test_devices()) {
    Case c = random_case({1, 1, 1, 1, 16, 8, 1, 16, 0}, device, at::kBFloat16, true);
    const at::Tensor key = c.tokens.index_key[0][0];
    key[0] = std::numeric_limits<float>::infinity();
    key[1] = -std::numeric_limits<float>::infinity();
    key[2] = 1e6f;
    key[3] = std::numeric_limits<float>::quiet_NaN();
    key[4] = 0x1p-9f;  // the smallest e4m3 number
    check_case(c);
    const at::Tensor stored = c.places().index_key.cpu().to(at::kFloat).flatten();
    EXPECT_EQ(stored[0].item<float>(), 448);
    EXPECT_EQ(stored[1].item<float>(), -448);
    EXPECT_EQ(stored[2].item<float>(), 448);
    EXPECT_TRUE(std::isnan(stored[3].item<float>()));
    EXPECT_EQ(stored[4].item<float>(), 0x1p-9f);
  }
}

TEST(RotaryAppend, RefusesBadArguments) {
  const auto with = [&](const std::function<void(NewTokens&, CachePlaces&)>& change) {
    const Case c = random_case({2, 5, 6, 3, 16, 8, 2, 16, 8}, at::kCPU, at::kFloat, false);
    NewTokens tokens = c.tokens;
    CachePlaces places = c.places();
    change(tokens, places);
    rotary_append(tokens, places);
  };
  EXPECT_NO_THROW(with([](NewTokens&, CachePlaces&) {}));
  EXPECT_THROW(with([](auto&, CachePlaces& p) { p.key = p.key.slice(1, 1); }), c10::ValueError);
  EXPECT_THROW(with([](auto&, CachePlaces& p) { p.index_key = p.index_key.to(at::kHalf); }), c10::TypeError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.query = t.query.slice(3, 1); }), c10::ValueError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.value = t.value.slice(2, 1); }), c10::ValueError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.value_gate = t.value_gate.to(at::kHalf); }), c10::TypeError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.sin = at::Tensor(); }), c10::ValueError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.cos = t.cos.slice(0, 1); }), c10::ValueError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.index_key = at::Tensor(); }), c10::ValueError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.gate_scale = 3; }), c10::ValueError);
  EXPECT_THROW(with([](NewTokens& t, auto&) { t.key.requires_grad_(); }), c10::ValueError);
  const at::NoGradGuard no_gradient;
  EXPECT_NO_THROW(with([](NewTokens& t, auto&) { t.key.requires_grad_(); }));
}

}  // namespace
}  // namespace gsa
