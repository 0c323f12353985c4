// The fused decode kernel, run on the CPU by the emulation against fp64: the launcher and the kernel as nvcc
// compiles them, instructions apart. The parts of a row run side by side.
#include "gsa/testing/cuda_emulation_mma.h"
#include "gsa/testing/cuda_emulation_sm90.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

// The library has the same functions as compiled by nvcc: these must not take their place.
#pragma GCC visibility push(hidden)
#include "gsa/ops/sparse_decode/sparse_decode_sm90.cu"
#pragma GCC visibility pop

namespace gsa {
namespace {

constexpr int kIndexHeads = 4, kIndexDim = 64, kHeads = 16, kGroups = 4, kDim = 128;

/// One step's tensors. Index scores are exact in fp32, so that the selection is, too.
struct Problem {
  int batch, keys, k, first, recent;
  std::vector<c10::BFloat16> index_query, query, key, value;
  std::vector<c10::Float8_e4m3fn> index_key;
  std::vector<float> weight;
  std::vector<int32_t> lengths;  // or none
  bool float8_keys;

  int length(int row) const { return lengths.empty() ? keys : lengths[row]; }
};

/// The parameter: whether index keys are e4m3, and not bf16.
class SparseDecodeEmulated : public ::testing::TestWithParam<bool> {
 protected:
  void TearDown() override { emulation::multiprocessors = before_; }

  int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator_); }

  /// `index` draws an element of an index key from its position and dimension.
  Problem make(int batch, int keys, int k, int first, int recent,
               const std::function<float(int, int)>& index) {
    Problem problem{batch, keys, k, first, recent, {}, {}, {}, {}, {}, {}, {}, GetParam()};
    const auto fill = [&](auto& to, size_t size, const auto& next) {
      for (size_t i = 0; i < size; ++i) to.push_back(next(static_cast<int>(i)));
    };
    std::normal_distribution<float> normal;
    const auto random = [&](int) { return normal(generator_); };
    const size_t tokens = static_cast<size_t>(batch) * keys;
    fill(problem.index_query, batch * kIndexHeads * kIndexDim, [&](int) { return draw(-8, 8) / 8.0f; });
    fill(problem.weight, batch * kIndexHeads, [&](int) { return draw(1, 64) / 64.0f; });
    fill(problem.index_key, tokens * kIndexDim,
         [&](int i) { return index(i / kIndexDim % keys, i % kIndexDim); });
    fill(problem.query, batch * kHeads * kDim, random);
    fill(problem.key, tokens * kGroups * kDim, random);
    fill(problem.value, tokens * kGroups * kDim, random);
    return problem;
  }

  /// Scores of a few levels per index dimension: many, most different.
  std::function<float(int, int)> usual() {
    return [this](int, int) { return static_cast<float>(draw(-4, 4)); };
  }

  void check(const Problem& problem, int multiprocessors);

 private:
  std::mt19937 generator_{7};
  const int before_ = emulation::multiprocessors;
};

INSTANTIATE_TEST_SUITE_P(Keys, SparseDecodeEmulated, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Float8" : "Bf16"; });

struct Expected {
  std::vector<int> selected;
  double variance = 0;
};

Expected select(const Problem& in, int row) {
  const int length = in.length(row);
  std::vector<std::pair<double, int>> scores;
  Expected expected;
  double sum = 0, square = 0;
  int count = 0;
  for (int s = 0; s < length; ++s) {
    double score = 0;
    for (int j = 0; j < kIndexHeads; ++j) {
      double z = 0;
      for (int i = 0; i < kIndexDim; ++i)
        z += static_cast<double>(in.index_query[(row * kIndexHeads + j) * kIndexDim + i]) *
             static_cast<float>(in.index_key[(static_cast<size_t>(row) * in.keys + s) * kIndexDim + i]);
      z = z / 8 * 0.25 + 0.5;
      score += (z == z ? std::clamp(z, 0.0, 1.0) : z) * in.weight[row * kIndexHeads + j];
    }
    if (score == score) {
      sum += score;
      square += score * score;
      ++count;
    }
    if (s < in.first || s >= length - in.recent)
      expected.selected.push_back(s);
    else if (score == score)
      scores.emplace_back(-score, s);
  }
  std::sort(scores.begin(), scores.end());
  for (const auto& [score, s] : scores)
    if (static_cast<int>(expected.selected.size()) < in.k) expected.selected.push_back(s);
  if (count > 0) expected.variance = square / count - sum / count * (sum / count);
  return expected;
}

void SparseDecodeEmulated::check(const Problem& in, int multiprocessors) {
  SCOPED_TRACE(::testing::Message() << "B " << in.batch << " S " << in.keys << " k " << in.k << " on "
                                    << multiprocessors);
  emulation::multiprocessors = multiprocessors;
  std::vector<int32_t> counts(in.batch);
  std::vector<float> statistic(in.batch), lse(in.batch * kHeads);
  std::vector<c10::BFloat16> out(in.batch * kHeads * kDim), before;
  SparseDecodeParams params;
  IndexSelectDecodeParams& p = params.select;
  p.index_query = in.index_query.data();
  const std::vector<c10::BFloat16> bf16_keys(in.index_key.begin(), in.index_key.end());
  p.index_key = in.float8_keys ? static_cast<const void*>(in.index_key.data()) : bf16_keys.data();
  p.head_weight = in.weight.data();
  p.counts = counts.data();
  p.statistic = statistic.data();
  p.lengths = in.lengths.empty() ? nullptr : in.lengths.data();
  p.batch = in.batch;
  p.queries = 1;
  p.keys = in.keys;
  p.heads = kIndexHeads;
  p.dim = kIndexDim;
  p.k_base = p.k_min = p.k_max = in.k;
  p.keep_first = in.first;
  p.keep_recent = in.recent;
  p.activation = IndexActivation::kHardSigmoid;
  p.key_batch_stride = static_cast<int64_t>(in.keys) * kIndexDim;
  p.float8_keys = in.float8_keys;
  params.query = in.query.data();
  params.key = in.key.data();
  params.value = in.value.data();
  params.out = out.data();
  params.lse = lse.data();
  params.key_batch_stride = params.value_batch_stride = static_cast<int64_t>(in.keys) * kGroups * kDim;
  params.heads = kHeads;
  params.groups = kGroups;
  params.dim = kDim;
  params.scale = 1 / std::sqrt(static_cast<float>(kDim));
  ASSERT_TRUE(sparse_decode_supported(params, multiprocessors));
  const size_t bytes = sparse_decode_workspace_bytes(params, multiprocessors),
               zeroed = sparse_decode_zeroed_bytes(params, multiprocessors);
  std::vector<uint4> workspace(bytes / 16 + 20, uint4{~0u, ~0u, ~0u, ~0u});
  char* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256);
  p.workspace = base;
  for (const bool again : {false, true}) {  // the second time on the workspace that the first left
    p.workspace_zeroed = again;
    std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
    ASSERT_EQ(launch_sparse_decode(params, nullptr), cudaSuccess);
    EXPECT_EQ(std::count(base, base + zeroed, 0), static_cast<int64_t>(zeroed));
    EXPECT_EQ(static_cast<unsigned char>(base[bytes]), 0xff);
    for (size_t i = 0; again && i < out.size(); ++i) ASSERT_EQ(out[i].x, before[i].x);
    before = out;
  }
  for (int row = 0; row < in.batch; ++row) {
    SCOPED_TRACE(::testing::Message() << "row " << row);
    const Expected expected = select(in, row);
    ASSERT_EQ(counts[row], static_cast<int>(expected.selected.size()));
    EXPECT_NEAR(statistic[row], expected.variance, 1e-5);
    for (int head = 0; head < kHeads; ++head) {
      const auto token = [&](int s) {
        return ((static_cast<size_t>(row) * in.keys + s) * kGroups + head / (kHeads / kGroups)) * kDim;
      };
      std::vector<double> weights, result(kDim);
      double peak = -std::numeric_limits<double>::infinity(), total = 0;
      for (const int s : expected.selected) {
        double logit = 0;
        for (int e = 0; e < kDim; ++e)
          logit += static_cast<double>(in.query[(row * kHeads + head) * kDim + e]) *
                   static_cast<float>(in.key[token(s) + e]);
        weights.push_back(logit * params.scale);
        peak = std::max(peak, weights.back());
      }
      for (size_t i = 0; i < weights.size(); ++i) {
        const double weight = std::exp(weights[i] - peak);
        total += weight;
        for (int e = 0; e < kDim; ++e)
          result[e] += weight * static_cast<float>(in.value[token(expected.selected[i]) + e]);
      }
      for (int e = 0; e < kDim; ++e)
        ASSERT_NEAR(static_cast<float>(out[(row * kHeads + head) * kDim + e]),
                    total > 0 ? result[e] / total : 0, 0.015);
      if (total > 0)
        EXPECT_NEAR(lse[row * kHeads + head], peak + std::log(total), 1e-4);
      else
        EXPECT_EQ(lse[row * kHeads + head], -std::numeric_limits<float>::infinity());
    }
  }
}

TEST_P(SparseDecodeEmulated, PartsOfFewAndOfManyKeys) {
  check(make(1, 1003, 100, 4, 16, usual()), 5);
  check(make(1, 5000, 300, 4, 128, usual()), 132);
  check(make(2, 9000, 300, 4, 32, usual()), 4);
  check(make(3, 5000, 400, 0, 0, usual()), 4);
  check(make(1, 3000, 300, 4, 16, usual()), 1);
}

TEST_P(SparseDecodeEmulated, FewerKeysThanAsked) {
  check(make(1, 100, 300, 4, 16, usual()), 5);
  check(make(1, 20, 300, 4, 16, usual()), 5);
  check(make(2, 900, 1000, 4, 16, usual()), 33);
}

/// Parts that have more of the selected keys than they had listed early, or many fewer.
TEST_P(SparseDecodeEmulated, SelectedKeysThatLieTogether) {
  for (const auto& [batch, keys, k, on] :
       std::vector<std::array<int, 4>>{{1, 4000, 300, 33}, {1, 8000, 600, 33}, {2, 9000, 1000, 4}}) {
    Problem problem = make(batch, keys, k, 4, 16, usual());
    for (int row = 0; row < batch; ++row)
      for (int s = keys / 3; s < keys / 3 + keys / 20; ++s)
        for (int i = 0; i < kIndexDim; ++i)
          problem.index_key[(static_cast<size_t>(row) * keys + s) * kIndexDim + i] =
              static_cast<float>(problem.index_query[row * kIndexHeads * kIndexDim + i]) * 4;
    check(problem, on);
  }
}

TEST_P(SparseDecodeEmulated, ManyKeysOfOneScore) {
  const auto none = [](int, int) { return 0.0f; };
  const auto close = [this](int, int) { return draw(0, 1) / 512.0f; };
  const auto levels = [this](int, int i) { return i < 2 ? static_cast<float>(draw(-3, 3)) : 0.0f; };
  for (const auto& index : std::vector<std::function<float(int, int)>>{none, close, levels}) {
    check(make(1, 8000, 600, 4, 16, index), 33);
    check(make(2, 6000, 500, 4, 16, index), 4);
  }
}

TEST_P(SparseDecodeEmulated, NaNIsNeverSelected) {
  const auto some = [this](int s, int i) {
    return s % 3 == 0 && i == 5 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(draw(-4, 4));
  };
  check(make(1, 1000, 800, 4, 16, some), 5);
  check(make(1, 3000, 300, 4, 16, some), 33);
}

TEST_P(SparseDecodeEmulated, RowsOfDifferentLengths) {
  Problem problem = make(7, 3000, 200, 4, 16, usual());
  problem.lengths = {3000, 0, 1, 64, 65, 900, 40};
  check(problem, 12);
  check(problem, 33);
}

/// Scores that do not fit shared memory.
TEST_P(SparseDecodeEmulated, LongParts) {
  Problem problem = make(2, 60000, 500, 4, 128, usual());
  problem.lengths = {100, 60000};
  check(problem, 3);
}

}  // namespace
}  // namespace gsa
