// The decode kernel of index_select, run on the CPU by the emulation: the launcher and the kernel as nvcc
// compiles them, instructions apart. The parts of a row run side by side.
#include "gsa/testing/cuda_emulation_mma.h"
#include "gsa/testing/cuda_emulation_sm90.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gsa/ops/indexer/index_select_problem.h"
#include "gsa/testing/random.h"
#include "gsa/testing/selection_cases.h"

// The library has the same functions as compiled by nvcc: these must not take their place.
#pragma GCC visibility push(hidden)
#include "gsa/ops/indexer/index_select_decode_float8_sm90.cu"
#include "gsa/ops/indexer/index_select_decode_sm90.cu"
#pragma GCC visibility pop

namespace gsa {
namespace {

using testing::check_exact_selection;
using testing::check_selection;
using testing::make_select_options;
using testing::random_select_inputs;
using testing::same_elements;
using testing::SelectInputs;
using testing::Selection;
using testing::tied_select_inputs;

/// index_select_decode_cuda.cpp's part, by hand. Runs twice, the second time on the workspace that the first
/// left.
Selection run_decode(const SelectInputs& in, const IndexSelectOptions& options, double mean,
                     const std::vector<int32_t>& lengths) {
  const at::Tensor query = in.query.to(at::kBFloat16).contiguous(), key = in.key.contiguous();
  const at::Tensor weight = in.weight.to(at::kFloat).contiguous(), bias = in.bias.to(at::kFloat).contiguous();
  const auto average = static_cast<float>(mean);
  IndexSelectDecodeParams params;
  set_problem(params, query, key, options);
  params.key_batch_stride = key.stride(0);
  params.float8_keys = key.scalar_type() == at::kFloat8_e4m3fn;
  params.log_scale = &testing::kSelectLogScale;
  params.index_query = query.const_data_ptr();
  params.index_key = key.const_data_ptr();
  params.head_weight = weight.const_data_ptr<float>();
  params.head_bias = bias.const_data_ptr<float>();
  params.running_mean = &average;
  params.lengths = lengths.empty() ? nullptr : lengths.data();
  EXPECT_TRUE(index_select_decode_supported(params));
  const auto bytes =
      static_cast<int64_t>(index_select_decode_workspace_bytes(params, emulation::multiprocessors));
  const auto zeroed =
      static_cast<int64_t>(index_select_decode_zeroed_bytes(params, emulation::multiprocessors));
  const at::Tensor workspace = at::full({bytes + 64}, 0x5a, at::kByte);  // what lies behind stays
  params.workspace = workspace.mutable_data_ptr();
  Selection found;
  for (const bool again : {false, true}) {
    const Selection before = found;
    const int64_t size = params.batch * params.queries * params.capacity;
    const at::Tensor guarded = at::full({size + 4096}, -2, at::kInt);
    found = {guarded.slice(0, 0, size).view({params.batch, params.queries, params.capacity}),
             at::full({params.batch, params.queries}, -2, at::kInt),
             at::full({params.batch, params.queries}, -2, at::kFloat)};
    params.indices = found.indices.mutable_data_ptr<int32_t>();
    params.counts = found.counts.mutable_data_ptr<int32_t>();
    params.statistic = found.statistic.mutable_data_ptr<float>();
    params.workspace_zeroed = again;
    EXPECT_EQ(launch_index_select_decode(params, nullptr), cudaSuccess);
    EXPECT_TRUE(guarded.slice(0, size).eq(-2).all().item<bool>());
    EXPECT_TRUE(workspace.slice(0, 0, zeroed).eq(0).all().item<bool>());
    EXPECT_TRUE(workspace.slice(0, bytes).eq(0x5a).all().item<bool>());
    if (!again) continue;
    EXPECT_TRUE(same_elements(found.indices, before.indices));
    EXPECT_TRUE(same_elements(found.statistic, before.statistic));
  }
  return found;
}

Selection select_emulated(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  return run_decode(in, options, mean, {});
}

class IndexSelectDecodeFloat8Emulated : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(testing::run_seed());
    emulation::multiprocessors = 5;
  }
  void TearDown() override { emulation::multiprocessors = before_; }

 private:
  const int before_ = emulation::multiprocessors;
};

/// Tests of every dtype that the kernel takes keys in.
class IndexSelectDecodeEmulated : public IndexSelectDecodeFloat8Emulated,
                                  public ::testing::WithParamInterface<at::ScalarType> {
 protected:
  /// The same problem with keys of the dtype.
  SelectInputs with_keys(SelectInputs in) const {
    in.key = in.key.to(GetParam());
    return in;
  }
  bool takes(int64_t dim) const { return GetParam() == at::kBFloat16 || dim != 32; }
};

TEST_P(IndexSelectDecodeEmulated, MatchesFp64OnRandomProblems) {
  auto generator = testing::case_generator(0);
  const std::vector<std::string> activations = {"sigmoid", "hard_sigmoid", "relu"};
  int next = 0;
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128}) {
      if (!takes(dim)) continue;
      const int64_t batch = testing::draw(generator, 1, 3), queries = testing::draw(generator, 1, 8),
                    keys = queries + testing::draw(generator, 0, 700);
      const std::string& activation = activations[next++ % 3];
      SCOPED_TRACE(::testing::Message() << "J " << heads << " I " << dim << " B " << batch << " T " << queries
                                        << " S " << keys << " " << activation);
      check_selection(with_keys(random_select_inputs(batch, queries, keys, heads, dim)),
                      make_select_options(testing::draw(generator, 20, 200), activation, 4, 16),
                      select_emulated);
    }
}

TEST_P(IndexSelectDecodeEmulated, EveryNumberOfTokensWithTies) {
  for (int64_t queries = 1; queries <= 8; ++queries) {
    SCOPED_TRACE(::testing::Message() << "T " << queries);
    const int64_t heads = int64_t{1} << queries % 4;
    const char* activation = queries % 2 ? "hard_sigmoid" : "relu";
    check_exact_selection(with_keys(tied_select_inputs(2, queries, 500 + 13 * queries, heads, 64)),
                          make_select_options(70, activation, 3, 20), select_emulated);
  }
}

TEST_P(IndexSelectDecodeEmulated, OneScoreForAllKeysAndNearlyEqualOnes) {
  for (const auto& [batch, queries] : {std::pair<int64_t, int64_t>{1, 1}, {2, 2}}) {
    SelectInputs in = tied_select_inputs(batch, queries, 3000, 4, 64);
    in.key = at::zeros(in.key.sizes(), at::kBFloat16);
    check_exact_selection(with_keys(in), make_select_options(1000, "hard_sigmoid", 4, 32), select_emulated);
  }
  // A boundary bin of more keys than are ranked one by one: later rounds divide it.
  SelectInputs close = random_select_inputs(1, 2, 3000, 4, 64);
  close.query = close.query * 1e-5;
  check_selection(with_keys(close), make_select_options(1000, "sigmoid", 0, 0), select_emulated);
  SelectInputs steps = tied_select_inputs(1, 1, 3000, 4, 64);
  steps.query = steps.query / 8192;
  check_exact_selection(with_keys(steps), make_select_options(1000, "hard_sigmoid", 0, 0), select_emulated);
}

TEST_P(IndexSelectDecodeEmulated, NaNIsNeverSelected) {
  for (const int64_t k : {100, 800}) {
    SelectInputs in = tied_select_inputs(2, 3, 900, 4, 64);
    in.key.slice(1, 0, 900, 3).fill_(std::numeric_limits<double>::quiet_NaN());
    in.query[1][1].fill_(std::numeric_limits<double>::quiet_NaN());
    check_exact_selection(with_keys(in), make_select_options(k, "hard_sigmoid", 4, 32), select_emulated);
  }
}

TEST_P(IndexSelectDecodeEmulated, AdaptiveBudgets) {
  for (const auto& [budget, mean] : std::vector<std::pair<std::string, double>>{
           {"inverse", 0.05}, {"as_printed", 0.05}, {"entropy", 6.0}, {"max_score", 1.5}}) {
    SCOPED_TRACE(budget);
    IndexSelectOptions options = make_select_options(300, "hard_sigmoid", 2, 5);
    options.k_base = 150;
    options.k_min = 30;
    options.budget = budget;
    check_selection(with_keys(random_select_inputs(2, 3, 800, 4, 64)), options, select_emulated, mean);
  }
}

TEST_P(IndexSelectDecodeEmulated, RowsOfDifferentLengths) {
  const std::vector<int32_t> lengths = {900, 0, 1, 2, 64, 65, 300};
  const auto batch = static_cast<int64_t>(lengths.size());
  emulation::multiprocessors = 12;
  const SelectInputs in = with_keys(tied_select_inputs(batch, 2, 900, 4, 64));
  const IndexSelectOptions options = make_select_options(50, "hard_sigmoid", 4, 16);
  const Selection found = run_decode(in, options, 0.05, lengths);
  for (int64_t b = 0; b < batch; ++b) {
    SCOPED_TRACE(::testing::Message() << "length " << lengths[b]);
    if (lengths[b] < 2) {  // the first query lies before the cache
      EXPECT_EQ(found.counts[b][0].item<int>(), 0);
      EXPECT_EQ(found.counts[b][1].item<int>(), lengths[b]);
      continue;
    }
    const auto row = [&](const at::Tensor& x) { return x.slice(0, b, b + 1); };
    const SelectInputs alone{row(in.query), row(in.key).slice(1, 0, lengths[b]), row(in.weight), in.bias};
    const Selection expected = testing::select_where_it_is(alone.on(at::kCPU, at::kDouble), options, 0.05);
    EXPECT_TRUE(same_elements(row(found.indices), expected.indices));
    EXPECT_TRUE(same_elements(row(found.counts), expected.counts));
  }
}

/// Warps without a ring of keys, where the scores leave little shared memory.
TEST_P(IndexSelectDecodeEmulated, FewerRingsBesideManyScores) {
  emulation::multiprocessors = 1;
  check_exact_selection(with_keys(tied_select_inputs(1, 1, 32700, 4, 64)),
                        make_select_options(300, "hard_sigmoid", 4, 32), select_emulated);
}

TEST_P(IndexSelectDecodeEmulated, ScoresThatDoNotFitSharedMemory) {
  emulation::multiprocessors = 1;
  check_exact_selection(with_keys(tied_select_inputs(1, 8, 7000, 4, 64)),
                        make_select_options(300, "hard_sigmoid", 4, 32), select_emulated);
  check_exact_selection(with_keys(tied_select_inputs(1, 1, 60000, 4, 64)),
                        make_select_options(300, "hard_sigmoid", 4, 32), select_emulated);
}

/// FP8 keys meet queries in f16: what it cannot hold is scaled, infinities and NaN come through.
TEST_F(IndexSelectDecodeFloat8Emulated, QueriesBeyondTheRangeOfHalf) {
  for (const int64_t dim : {64, 128})
    for (const int exponent : {-100, -60, -20, 20, 50, 100}) {
      SCOPED_TRACE(::testing::Message() << "I " << dim << " 2^" << exponent);
      SelectInputs in = tied_select_inputs(1, 4, 400, 1, dim);
      in.bias.zero_();
      // Columns of different magnitude, and numbers of different magnitude in a column.
      for (int t = 0; t < 4; ++t) in.query[0][t].mul_(std::ldexp(1.0, exponent + t));
      in.query.slice(3, 0, dim, 5).mul_(std::ldexp(1.0, -9));
      in.key = in.key.to(at::kFloat8_e4m3fn);
      const IndexSelectOptions options = make_select_options(50, "relu", 2, 5);
      if (dim == 64) {
        check_exact_selection(in, options, select_emulated);
      } else if (exponent < 100) {  // the variance is beyond fp32
        check_selection(in, options, select_emulated);
      }
    }
  SelectInputs in = tied_select_inputs(1, 3, 400, 4, 64);
  in.query[0][0][1][3].fill_(std::numeric_limits<double>::infinity());
  in.query[0][1][2][60].fill_(-std::numeric_limits<double>::infinity());
  in.query[0][2][3][17].fill_(std::numeric_limits<double>::quiet_NaN());
  in.key = in.key.to(at::kFloat8_e4m3fn);
  check_exact_selection(in, make_select_options(50, "hard_sigmoid", 2, 5), select_emulated);
}

TEST_F(IndexSelectDecodeFloat8Emulated, EveryNumberButNaN) {
  for (const int64_t dim : {64, 128}) {
    SelectInputs in = random_select_inputs(2, 2, 600, 4, dim);
    const at::Tensor bytes = at::randint(0, 256, {2, 600, dim}, at::kByte);
    in.key = bytes.masked_fill(bytes.bitwise_and(0x7f).eq(0x7f), 0).view(at::kFloat8_e4m3fn);
    check_selection(in, make_select_options(100, "relu", 2, 5), select_emulated);
  }
}

INSTANTIATE_TEST_SUITE_P(Keys, IndexSelectDecodeEmulated,
                         ::testing::Values(at::kBFloat16, at::kFloat8_e4m3fn),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

}  // namespace
}  // namespace gsa
