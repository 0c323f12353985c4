#include "gsa/ops/index_loss/index_loss.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "gsa/ops/indexer/index_scores.h"
#include "gsa/testing/random.h"

namespace gsa {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  at::Tensor query, key, lse, indices, counts, index_query, index_key, head_weight;
  std::optional<at::Tensor> head_bias;
  at::Tensor log_scale;
  IndexLossOptions options;

  at::Tensor dense() const {
    return index_loss_dense(query, key, lse, index_query, index_key, head_weight, head_bias, log_scale,
                            options);
  }
  at::Tensor selected() const {
    return index_loss_selected(query, key, indices, counts, index_query, index_key, head_weight, head_bias,
                               log_scale, options);
  }
  std::vector<at::Tensor*> indexer_tensors() {
    std::vector<at::Tensor*> tensors{&index_query, &index_key, &head_weight, &log_scale};
    if (head_bias) tensors.push_back(&*head_bias);
    return tensors;
  }
};

struct Sizes {
  int64_t batch = 2, queries = 9, keys = 12, heads = 4, key_heads = 2, dim = 5, index_heads = 3,
          index_dim = 4, selected = 6;
};

/// Attention logits [B,T,H,S] with -inf in the future, in the dtype of the inputs.
at::Tensor attention_logits(const Case& c) {
  const int64_t members = c.query.size(2) / c.key.size(2), queries = c.query.size(1), keys = c.key.size(1);
  const at::Tensor key = c.key.repeat_interleave(members, 2);
  const double scale = c.options.scale.value_or(1.0 / std::sqrt(static_cast<double>(c.query.size(3))));
  return (at::einsum("bthe,bshe->bths", {c.query, key}) * scale)
      .masked_fill(future_mask(0, queries, queries, keys, c.query.device()).unsqueeze(1), -kInfinity);
}

Case make_case(uint64_t seed, const Sizes& n, at::ScalarType dtype = at::kDouble, bool with_bias = true) {
  at::manual_seed(seed);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, options).to(dtype); };
  Case c;
  c.query = normal({n.batch, n.queries, n.heads, n.dim}) * 2;
  c.key = normal({n.batch, n.keys, n.key_heads, n.dim});
  c.index_query = normal({n.batch, n.queries, n.index_heads, n.index_dim});
  c.index_key = normal({n.batch, n.keys, n.index_dim});
  c.head_weight = at::sigmoid(normal({n.batch, n.queries, n.index_heads}));
  if (with_bias) c.head_bias = normal({n.index_heads});
  c.log_scale = at::full({}, 1.1, options).to(dtype == at::kDouble ? at::kDouble : at::kFloat);
  c.lse = attention_logits(c).logsumexp(3).to(dtype == at::kDouble ? at::kDouble : at::kFloat);
  // A random selection: the `selected` best of a random order of the keys that a query sees, ascending.
  const at::Tensor order = at::rand({n.batch, n.queries, n.keys}, options)
                               .masked_fill(future_mask(0, n.queries, n.queries, n.keys, at::kCPU), -1);
  const auto [value, index] = at::topk(order, std::min(n.selected, n.keys), 2);
  const at::Tensor sorted = std::get<0>(index.masked_fill(value.lt(0), n.keys).sort(2));
  c.indices = sorted.masked_fill(sorted.eq(n.keys), -1).to(at::kInt);
  c.counts = value.ge(0).sum(2).to(at::kInt);
  return c;
}

/// The definition, one number at a time in fp64. `selected`: over the selection.
at::Tensor by_definition(const Case& c, bool selected) {
  const at::Tensor logits = attention_logits(c).to(at::kDouble);
  const at::Tensor scores =
      index_scores(c.index_query, c.index_key, c.head_weight, c.head_bias, c.options.activation)
          .to(at::kDouble);
  const int64_t batch = logits.size(0), queries = logits.size(1), heads = logits.size(2),
                keys = logits.size(3);
  const double sharpness = std::exp(c.log_scale.item<double>());
  at::Tensor loss = at::zeros({batch, queries}, at::kDouble);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < queries; ++t) {
      const int64_t position = t + keys - queries;
      std::vector<bool> visible(keys, !selected);
      if (selected) {
        for (int64_t i = 0; i < c.indices.size(2); ++i) {
          const int64_t index = c.indices[b][t][i].item<int>();
          if (index >= 0) visible[index] = true;
        }
      }
      std::vector<double> weight(keys, 0.0), z(keys, -kInfinity);
      double total = 0, normaliser = 0;
      for (int64_t h = 0; h < heads; ++h) {
        double sum = 0;
        for (int64_t s = 0; s <= position; ++s)
          sum += visible[s] ? std::exp(logits[b][t][h][s].item<double>()) : 0.0;
        for (int64_t s = 0; s <= position; ++s) {
          if (!visible[s] || s < c.options.keep_first || s > position - c.options.keep_recent) continue;
          const double probability = std::exp(logits[b][t][h][s].item<double>()) / sum;
          weight[s] = c.options.head_reduction == "max" ? std::max(weight[s], probability)
                                                        : weight[s] + probability / heads;
          z[s] = sharpness * scores[b][t][s].item<double>();
        }
      }
      for (int64_t s = 0; s < keys; ++s) total += weight[s], normaliser += std::exp(z[s]);
      double value = 0;
      for (int64_t s = 0; s < keys; ++s) {
        if (weight[s] > 0)
          value += weight[s] / total * (std::log(weight[s] / total) - (z[s] - std::log(normaliser)));
      }
      loss[b][t] = value;
    }
  }
  return loss;
}

double largest(const at::Tensor& tensor) {
  return tensor.numel() == 0 ? 0 : tensor.abs().max().item<double>();
}

IndexLossOptions draw_options(std::mt19937_64& generator) {
  IndexLossOptions options;
  options.activation =
      std::vector<std::string>{"sigmoid", "hard_sigmoid", "relu"}[testing::draw(generator, 0, 2)];
  options.head_reduction = testing::draw(generator, 0, 1) == 0 ? "mean" : "max";
  options.keep_first = testing::draw(generator, 0, 3);
  options.keep_recent = testing::draw(generator, 0, 4);
  if (testing::draw(generator, 0, 1) == 1) options.scale = 0.7;
  return options;
}

TEST(IndexLoss, IsTheDefinitionOnRandomShapes) {
  for (uint64_t i = 0; i < 12; ++i) {
    auto generator = testing::case_generator(i);
    Sizes n;
    n.batch = testing::draw(generator, 1, 2);
    n.queries = testing::draw(generator, 1, 10);
    n.keys = n.queries + (i % 2 == 0 ? 0 : testing::draw(generator, 1, 24));
    n.key_heads = testing::draw(generator, 1, 2);
    n.heads = n.key_heads * testing::draw(generator, 1, 3);
    n.index_heads = testing::draw(generator, 1, 4);
    n.selected = testing::draw(generator, 1, 8);
    Case c = make_case(testing::run_seed() + i, n, at::kDouble, i % 3 != 0);
    c.options = draw_options(generator);
    c.lse = attention_logits(c).logsumexp(3);  // with the drawn scale
    EXPECT_LT(largest(c.dense() - by_definition(c, false)), 1e-11) << "case " << i;
    EXPECT_LT(largest(c.selected() - by_definition(c, true)), 1e-11) << "case " << i;
  }
}

/// Central differences of sum(weights * loss) against autograd, for every tensor of the indexer.
void expect_gradients(Case c, bool selected, const std::string& what) {
  const at::Tensor weights = at::randn({c.query.size(0), c.query.size(1)}, at::kDouble);
  const auto value = [&] { return ((selected ? c.selected() : c.dense()) * weights).sum(); };
  const auto tensors = c.indexer_tensors();
  for (at::Tensor* tensor : tensors) *tensor = tensor->detach().clone().requires_grad_(true);
  value().backward();
  std::vector<at::Tensor> gradients;
  for (at::Tensor* tensor : tensors) {
    ASSERT_TRUE(tensor->grad().defined()) << what;
    gradients.push_back(tensor->grad().clone());
    *tensor = tensor->detach();
  }
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor flat = tensors[i]->view(-1), gradient = gradients[i].view(-1);
    for (int64_t j = 0; j < flat.numel(); j += 1 + flat.numel() / 7) {  // a sample of the entries
      const double at_point = flat[j].item<double>();
      flat[j] = at_point + kStep;
      const double above = value().item<double>();
      flat[j] = at_point - kStep;
      const double below = value().item<double>();
      flat[j] = at_point;
      const double numeric = (above - below) / (2 * kStep);
      EXPECT_NEAR(gradient[j].item<double>(), numeric, 1e-6 * std::max(1.0, std::abs(numeric)))
          << what << ", tensor " << i << ", entry " << j;
    }
  }
}

TEST(IndexLoss, GradientsMatchFiniteDifferences) {
  uint64_t seed = 100;
  for (const char* activation : {"sigmoid", "hard_sigmoid", "relu"}) {
    for (const char* reduction : {"mean", "max"}) {
      for (const int64_t selected : std::vector<int64_t>{3, 6}) {  // gathered (3 * 4 < 14) and as a range
        Sizes n;
        n.keys = 14;
        n.selected = selected;
        ++seed;
        Case c = make_case(seed, n, at::kDouble, seed % 2 == 0);
        c.options = {activation, std::nullopt, 1, 2, reduction};
        expect_gradients(c, false, std::string("dense ") + activation + " " + reduction);
        expect_gradients(c, true, std::string("selected ") + activation + " " + reduction);
      }
    }
  }
}

TEST(IndexLoss, ReachesTheIndexerAlone) {
  Case c = make_case(3, {});
  for (at::Tensor* tensor : {&c.query, &c.key, &c.lse, &c.index_query}) tensor->requires_grad_(true);
  (c.dense().sum() + c.selected().sum()).backward();
  EXPECT_FALSE(c.query.grad().defined());
  EXPECT_FALSE(c.key.grad().defined());
  EXPECT_FALSE(c.lse.grad().defined());
  EXPECT_GT(largest(c.index_query.grad()), 0);
}

TEST(IndexLoss, SelectingEverythingIsTheDenseLoss) {
  Sizes n;
  n.selected = n.keys;
  Case c = make_case(4, n);
  c.options = {"sigmoid", std::nullopt, 2, 3, "max"};
  EXPECT_LT(largest(c.dense() - c.selected()), 1e-12);
}

TEST(IndexLoss, ARowWithNothingBeyondItsKeptTokensIsZero) {
  Sizes n;
  n.queries = n.keys = 8;
  Case c = make_case(5, n);
  c.options.keep_first = 2;
  c.options.keep_recent = 3;
  for (const at::Tensor& loss : {c.dense(), c.selected()}) {
    EXPECT_EQ(largest(loss.slice(1, 0, 5)), 0);  // positions 0 .. 4 see 2 + 3 kept tokens
    EXPECT_TRUE(at::isfinite(loss).all().item<bool>());
  }
  EXPECT_GT(largest(c.dense().slice(1, 5)), 0);
  n.queries = n.keys = 1;
  Case one = make_case(6, n);
  EXPECT_EQ(largest(one.dense()), 0);  // one key, all the mass on it
  one.options.keep_recent = 1;
  EXPECT_EQ(largest(one.dense()), 0);
  EXPECT_EQ(largest(one.selected()), 0);
}

TEST(IndexLoss, NoAttentionOnAnyCandidateIsZeroWithoutGradient) {
  Case c = make_case(7, {});
  c.lse = c.lse + 1e4;  // every probability underflows to zero
  c.index_query.requires_grad_(true);
  const at::Tensor loss = c.dense();
  EXPECT_EQ(largest(loss), 0);
  loss.sum().backward();
  EXPECT_EQ(largest(c.index_query.grad()), 0);
}

TEST(IndexLoss, ZeroProbabilitiesCountForNothing) {
  Case c = make_case(8, {});
  c.query = c.query * 1e4;  // one key takes everything, the others underflow: 0 log 0
  c.lse = attention_logits(c).logsumexp(3);
  c.index_key.requires_grad_(true);
  for (const at::Tensor& loss : {c.dense(), c.selected()}) {
    EXPECT_TRUE(at::isfinite(loss).all().item<bool>());
    loss.sum().backward();
    EXPECT_TRUE(at::isfinite(c.index_key.grad()).all().item<bool>());
  }
}

TEST(IndexLoss, BlocksOfQueriesAndSingleQueriesAgree) {
  Sizes n;
  n.queries = 40;
  n.keys = 1800;  // wide enough for several blocks
  n.heads = 8;
  n.index_heads = 8;
  for (const int64_t selected : {20, 600}) {
    n.selected = selected;
    Case c = make_case(9, n, at::kFloat);
    c.options = {"sigmoid", std::nullopt, 2, 5, "mean"};
    const at::Tensor dense = c.dense(), chosen = c.selected();
    for (const int64_t t : {0, 17, 39}) {
      Case one = c;
      const int64_t keys = n.keys - n.queries + t + 1;
      for (at::Tensor* tensor :
           {&one.query, &one.lse, &one.indices, &one.counts, &one.index_query, &one.head_weight}) {
        *tensor = tensor->slice(1, t, t + 1);
      }
      one.key = one.key.slice(1, 0, keys);
      one.index_key = one.index_key.slice(1, 0, keys);
      EXPECT_LT(largest(one.dense().select(1, 0) - dense.select(1, t)), 1e-4);
      EXPECT_LT(largest(one.selected().select(1, 0) - chosen.select(1, t)), 1e-4);
    }
  }
}

TEST(IndexLoss, IgnoresTheFutureAndOtherSequences) {
  Case c = make_case(10, {}, at::kFloat);
  const at::Tensor dense = c.dense(), selected = c.selected();
  Case other = c;
  other.key = c.key.clone();
  other.index_key = c.index_key.clone();
  other.key.select(1, 11).fill_(50);  // only the last query sees the last key
  other.index_key.select(1, 11).fill_(-3);
  EXPECT_TRUE(at::equal(other.dense().slice(1, 0, 8), dense.slice(1, 0, 8)));
  EXPECT_TRUE(at::equal(other.selected().slice(1, 0, 8), selected.slice(1, 0, 8)));
  other = c;
  other.index_query = c.index_query.clone();
  other.index_query.select(0, 1).normal_();
  EXPECT_TRUE(at::equal(other.dense().select(0, 0), dense.select(0, 0)));
  EXPECT_FALSE(at::equal(other.dense().select(0, 1), dense.select(0, 1)));
}

TEST(IndexLoss, LeavesOutKeysInTheFutureOfASharedRow) {
  Sizes n;
  n.queries = n.keys = 4;
  Case c = make_case(11, n);
  c.indices = at::arange(4, at::kInt)
                  .view({1, 1, 4})
                  .expand({2, 4, 4})
                  .contiguous();  // one row for all queries, repeated
  c.counts = at::full({2, 4}, 4, at::kInt);
  EXPECT_LT(largest(c.selected() - c.dense()), 1e-12);
}

TEST(IndexLoss, SinglePrecisionStaysNearTheTruth) {
  Sizes n;
  n.queries = n.keys = 33;
  n.selected = 8;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    Case c = make_case(12, n, dtype);
    Case exact = c;  // the same rounded numbers in fp64
    for (at::Tensor* tensor : {&exact.query, &exact.key, &exact.index_query, &exact.index_key,
                               &exact.head_weight, &exact.log_scale}) {
      *tensor = tensor->to(at::kDouble);
    }
    exact.head_bias = exact.head_bias->to(at::kDouble);
    exact.lse = attention_logits(exact).logsumexp(3);
    c.lse = exact.lse.to(at::kFloat);
    EXPECT_EQ(c.dense().scalar_type(), at::kFloat);
    const double scale = largest(exact.dense());
    EXPECT_LT(largest(c.dense() - exact.dense()), 2e-5 * scale);
    EXPECT_LT(largest(c.selected() - exact.selected()), 2e-5 * scale);
  }
}

TEST(IndexLoss, HasMetaKernels) {
  Case c = make_case(13, {}, at::kFloat);
  for (at::Tensor* tensor : {&c.query, &c.key, &c.lse, &c.indices, &c.counts, &c.index_query, &c.index_key,
                             &c.head_weight, &c.log_scale}) {
    *tensor = tensor->to(at::kMeta);
  }
  c.head_bias = c.head_bias->to(at::kMeta);
  EXPECT_EQ(c.dense().sizes(), (std::vector<int64_t>{2, 9}));
  EXPECT_EQ(c.selected().scalar_type(), at::kFloat);
  const auto gradients =
      index_loss_dense_backward(c.dense(), c.query, c.key, c.lse, c.index_query, c.index_key, c.head_weight,
                                c.head_bias, c.log_scale, c.options);
  EXPECT_EQ(std::get<1>(gradients).sizes(), c.index_key.sizes());
}

void expect_message(const std::function<void()>& call, const std::string& expected) {
  try {
    call();
    FAIL() << "no error; expected " << expected;
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find(expected), std::string::npos)
        << error.what_without_backtrace();
  }
}

TEST(IndexLoss, SaysWhatIsWrongWithAnArgument) {
  const auto with = [](auto change) {
    Case c = make_case(14, {});
    change(c);
    return [c] { c.dense(), c.selected(); };
  };
  expect_message(with([](Case& c) { c.options.head_reduction = "sum"; }),
                 "head_reduction expected 'mean' or 'max', got 'sum'");
  expect_message(with([](Case& c) { c.options.activation = "tanh"; }),
                 "index_loss_dense: activation expected");
  expect_message(with([](Case& c) { c.options.keep_recent = -1; }), "keep_recent expected at least 0");
  expect_message(with([](Case& c) { c.lse = c.lse.slice(2, 0, 1); }),
                 "index_loss_dense: lse expected shape [B,T,H]");
  expect_message(with([](Case& c) { c.key = c.key.slice(1, 0, 3); }), "key expected at least as many keys");
  expect_message(with([](Case& c) {
                   c.key = c.key.repeat({1, 1, 3, 1});
                 }),
                 "key expected a number of heads G that divides");
  expect_message(with([](Case& c) { c.index_key = c.index_key.slice(1, 1); }), "index_key");
  expect_message(with([](Case& c) { c.log_scale = at::zeros({2}, at::kDouble); }),
                 "log_scale expected one number");
  expect_message(with([](Case& c) { c.indices = c.indices.slice(1, 0, 3); }),
                 "index_loss_selected: indices expected shape [B,T,K]");
  expect_message(with([](Case& c) { c.counts = c.counts.to(at::kLong); }), "counts expected dtype");
}

}  // namespace
}  // namespace gsa
