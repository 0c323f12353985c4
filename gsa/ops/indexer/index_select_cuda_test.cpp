// The fused kernel against fp64 scores and against the reference. Skipped where no GPU is.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gsa/base/device.h"
#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/testing/random.h"
#include "gsa/testing/selection_cases.h"

#ifdef GSA_CUDA
#include "gsa/ops/indexer/index_select_cuda.h"
#endif

namespace gsa {
namespace {

using testing::make_select_options;
using testing::random_select_inputs;
using testing::SelectInputs;
using testing::Selection;
using testing::tied_select_inputs;

/// The op on the GPU, in bf16, and its answer back on the CPU.
Selection select_on_gpu(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  const Selection found =
      testing::select_where_it_is(in.on(at::Device(at::kCUDA, 0), at::kBFloat16), options, mean);
  return {found.indices.cpu(), found.counts.cpu(), found.statistic.cpu()};
}

void check_exact(const SelectInputs& in, const IndexSelectOptions& options) {
  testing::check_exact_selection(in, options, select_on_gpu);
}

class IndexSelectCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(testing::run_seed());
  }
};

constexpr int64_t kLongRow = 42000;  // more than SelectLimits::most_keys

/// What holds whatever the kernel that scores leaves: scores, lists or finished rows.
class IndexSelectCudaRows : public IndexSelectCuda, public ::testing::WithParamInterface<SelectLeaves> {
 protected:
  static Selection select(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
#ifdef GSA_CUDA
    constexpr int64_t kAny = int64_t{1} << 40;
    fused_select::SelectLimits limits;
    limits.stored_keys = limits.coded_keys = limits.stored_shared_keys =
        GetParam() == SelectLeaves::kScores ? kAny : 0;
    limits.stored_queries = limits.stored_shared_queries = 0;
    limits.most_keys = GetParam() == SelectLeaves::kLists ? kAny : 0;
    const SelectInputs there = in.on(at::Device(at::kCUDA, 0), at::kBFloat16);
    const auto found = index_select_fused(
        there.query, there.key, there.weight, there.bias, at::full({}, mean, there.weight.options()), options,
        at::full({}, testing::kSelectLogScale, there.weight.options()), limits);
    const auto& [indices, counts, statistic] = found.value();
    return {indices.cpu(), counts.cpu(), statistic.cpu()};
#else
    return testing::select_where_it_is(in, options, mean);
#endif
  }
  static void check_selection(const SelectInputs& in, const IndexSelectOptions& options) {
    testing::check_selection(in, options, select);
  }
  static void check_exact(const SelectInputs& in, const IndexSelectOptions& options) {
    testing::check_exact_selection(in, options, select);
  }
  /// The same, where the reference wants the GPU.
  static void check_by_reference(const SelectInputs& in, const IndexSelectOptions& options) {
    const Selection found = select(in, options, 1);
    const SelectInputs wide = in.on(at::Device(at::kCUDA, 0), at::kFloat);
    const auto [indices, counts, statistic] = index_select_reference(
        wide.query, wide.key, wide.weight, wide.bias, std::nullopt, options.k_base, options.k_min,
        options.k_max, options.budget, options.activation, options.query_tile, options.keep_first,
        options.keep_recent, options.tile_factor, std::nullopt);
    EXPECT_TRUE(testing::same_elements(found.indices, indices.cpu()));
    EXPECT_TRUE(testing::same_elements(found.counts, counts.cpu()));
  }
};
constexpr const char* kWays[] = {"Rows", "Lists", "Scores"};
INSTANTIATE_TEST_SUITE_P(Leaves, IndexSelectCudaRows,
                         ::testing::Values(SelectLeaves::kRows, SelectLeaves::kLists, SelectLeaves::kScores),
                         [](const auto& info) { return kWays[info.index]; });

/// And of rows that queries share.
class IndexSelectCudaShared : public IndexSelectCudaRows {};
INSTANTIATE_TEST_SUITE_P(Leaves, IndexSelectCudaShared,
                         ::testing::Values(SelectLeaves::kLists, SelectLeaves::kScores),
                         [](const auto& info) { return kWays[info.index + 1]; });

TEST_P(IndexSelectCudaRows, MatchesFp64OnEveryShape) {
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128})
      for (const std::string activation : {"sigmoid", "hard_sigmoid", "relu"}) {
        SCOPED_TRACE(::testing::Message() << heads << " heads of " << dim << ", " << activation);
        check_selection(random_select_inputs(1, 101, 333, heads, dim),
                        make_select_options(40, activation, 4, 16));
      }
}

TEST_P(IndexSelectCudaRows, LongRowsMatchFp64OnEveryShape) {
  const std::vector<std::string> activations{"sigmoid", "hard_sigmoid", "relu"};
  int64_t number = 0;
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128}) {
      const std::string& activation = activations[number++ % 3];
      SCOPED_TRACE(::testing::Message() << heads << " heads of " << dim << ", " << activation);
      check_selection(random_select_inputs(1, 37, kLongRow, heads, dim),
                      make_select_options(400, activation, 4, 16));
    }
  check_exact(tied_select_inputs(1, 40, kLongRow, 4, 64), make_select_options(300, "hard_sigmoid", 3, 5));
}

TEST_P(IndexSelectCudaRows, MatchesFp64OnRandomProblems) {
  for (int64_t trial = 0; trial < 12; ++trial) {
    auto generator = testing::case_generator(trial);
    const int64_t queries = testing::draw(generator, 1, 200),
                  keys = queries + testing::draw(generator, 0, 300);
    IndexSelectOptions options =
        make_select_options(testing::draw(generator, 20, 90), "hard_sigmoid", testing::draw(generator, 0, 5),
                            testing::draw(generator, 0, 9));
    options.k_base = testing::draw(generator, options.k_min, options.k_max);
    options.budget = std::vector<std::string>{"fixed", "inverse", "as_printed"}[trial % 3];
    SCOPED_TRACE(::testing::Message()
                 << "trial " << trial << ": T " << queries << " S " << keys << " " << options.budget);
    check_selection(random_select_inputs(testing::draw(generator, 1, 3), queries, keys, 4, 64), options);
  }
}

TEST_P(IndexSelectCudaRows, TiesGoToTheLowerPosition) {
  for (const std::string activation : {"hard_sigmoid", "relu"}) {
    check_exact(tied_select_inputs(2, 300, 700, 4, 64), make_select_options(50, activation, 3, 5));
    check_exact(tied_select_inputs(1, 130, 5000, 2, 64),
                make_select_options(64, activation, 0, 0));  // with a sampled gate
  }
  SelectInputs equal = tied_select_inputs(1, 100, 3000, 4, 64);
  equal.key = equal.key.slice(1, 0, 1).expand({1, 3000, 64}).contiguous();
  check_exact(equal, make_select_options(128, "hard_sigmoid", 0, 0));
}

TEST_P(IndexSelectCudaRows, RisingFallingAndMisleadingSamplesStayExact) {
  for (const int64_t keys : {int64_t{6000}, kLongRow}) {
    SCOPED_TRACE(::testing::Message() << keys << " keys");
    SelectInputs in = tied_select_inputs(1, 40, keys, 4, 64);
    const at::Tensor ramp = (at::arange(keys, at::kFloat) / 500).floor().view({1, keys, 1}).to(at::kBFloat16);
    in.query = at::ones({1, 40, 4, 64}, at::kBFloat16) / 8;
    for (const double sign : {1.0, -1.0}) {
      in.key = (ramp * sign / 16).expand({1, keys, 64}).contiguous();
      check_exact(in, make_select_options(200, "hard_sigmoid", 0, 0));
    }
    // Every sampled key far better, then far worse, than the others.
    for (const double sign : {1.0, -1.0}) {
      in.key = at::randint(-1, 2, {1, keys, 64}, at::kBFloat16) / 16;
      for (int64_t phase = 0; phase < 32; phase += 2) in.key.slice(1, phase, keys, 32).fill_(sign / 8);
      check_exact(in, make_select_options(200, "hard_sigmoid", 0, 0));
    }
  }
}

TEST_P(IndexSelectCudaRows, NaNIsNeverSelected) {
  SelectInputs in = random_select_inputs(1, 150, 900, 4, 64);
  in.key.slice(1, 0, 900, 7).fill_(std::numeric_limits<double>::quiet_NaN());
  for (const std::string activation : {"sigmoid", "hard_sigmoid", "relu"}) {
    check_selection(in, make_select_options(60, activation, 1, 3));
    check_selection(in, make_select_options(1000, activation, 1, 3));
  }
}

// ReLU leaves nearly all scores zero.
TEST_P(IndexSelectCudaRows, ManyZeros) {
  SelectInputs in = tied_select_inputs(1, 150, 3000, 4, 64);
  in.bias.fill_(-1);
  for (const int64_t k : {30, 700, 2900}) check_exact(in, make_select_options(k, "relu", 3, 5));
  in.weight -= 0.5;  // negative scores, too
  check_exact(in, make_select_options(700, "relu", 3, 5));
}

// Scores that tie because activations saturate, at either end, and scores that lie close together.
TEST_P(IndexSelectCudaRows, SaturatedAndCloseScores) {
  SelectInputs in = tied_select_inputs(1, 150, 3000, 4, 64);
  for (const double factor : {-16, 16, 4}) {
    in.key = at::randint(0, 3, {1, 3000, 1}, at::kBFloat16).expand({1, 3000, 64}) * factor;
    in.query = at::randint(0, 2, {1, 150, 4, 64}, at::kBFloat16);
    check_exact(in, make_select_options(700, "hard_sigmoid", 3, 5));
  }
  for (const double spread : {0x1p-4, 0x1p-7, 0x1p-11}) {
    in = random_select_inputs(1, 150, 3000, 4, 64);
    in.query = in.query.abs();
    in.key = (in.key * spread).to(at::kBFloat16);
    check_selection(in, make_select_options(700, "hard_sigmoid", 3, 5));
    check_selection(in, make_select_options(700, "sigmoid", 3, 5));
  }
}

TEST_P(IndexSelectCudaRows, SelectsAmongAMillionKeys) {
  const int64_t keys = 1 << 20;
  const SelectInputs in = random_select_inputs(1, 2, keys, 4, 64);
  const IndexSelectOptions options = make_select_options(2048, "hard_sigmoid", 4, 128);
  const Selection found = select(in, options, 1);
  const SelectInputs wide = in.on(at::Device(at::kCUDA, 0), at::kDouble);
  const at::Tensor scores = index_scores(wide.query, wide.key, wide.weight.to(at::kDouble),
                                         wide.bias.to(at::kDouble), "hard_sigmoid")
                                .cpu();
  for (int64_t t = 0; t < 2; ++t) {
    const double* values = scores[0][t].contiguous().const_data_ptr<double>();
    testing::check_row({values, values + t + keys - 1}, testing::row_of(found.indices, found.counts, 0, t),
                       2048, options, 1e-5);
  }
}

TEST_P(IndexSelectCudaRows, TheSameTwice) {
  const SelectInputs in = random_select_inputs(2, 700, 7000, 4, 64);
  const IndexSelectOptions options = make_select_options(256, "sigmoid", 4, 128);
  const Selection once = select(in, options, 1), again = select(in, options, 1);
  EXPECT_TRUE(testing::same_elements(once.indices, again.indices));
  EXPECT_TRUE(testing::same_elements(once.counts, again.counts));
  EXPECT_TRUE(testing::same_elements(once.statistic, again.statistic));
}

IndexSelectOptions shared_options(int64_t k, int64_t query_tile, int64_t first, int64_t recent,
                                  const std::string& activation = "hard_sigmoid") {
  IndexSelectOptions options = make_select_options(k, activation, first, recent);
  options.query_tile = query_tile;
  return options;
}

TEST_P(IndexSelectCudaShared, MatchFp64OnEveryShape) {
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128})
      for (const std::string activation : {"sigmoid", "hard_sigmoid", "relu"}) {
        SCOPED_TRACE(::testing::Message() << heads << " heads of " << dim << ", " << activation);
        check_selection(random_select_inputs(1, 101, 333, heads, dim),
                        shared_options(40, 64, 4, 16, activation));
      }
}

TEST_P(IndexSelectCudaShared, MatchFp64OnRandomProblems) {
  for (int64_t trial = 0; trial < 12; ++trial) {
    auto generator = testing::case_generator(trial);
    const int64_t queries = testing::draw(generator, 1, 200),
                  keys = queries + testing::draw(generator, 0, 300);
    IndexSelectOptions options =
        shared_options(testing::draw(generator, 20, 90), testing::draw(generator, 2, 100),
                       testing::draw(generator, 0, 5), testing::draw(generator, 0, 9));
    options.k_base = testing::draw(generator, options.k_min, options.k_max);
    options.budget = std::vector<std::string>{"fixed", "inverse", "as_printed"}[trial % 3];
    options.tile_factor = std::vector<double>{1, 1.3, 1.5, 4}[trial % 4];
    SCOPED_TRACE(::testing::Message() << "trial " << trial << ": T " << queries << " S " << keys << " "
                                      << options.budget << " query_tile " << options.query_tile);
    check_selection(random_select_inputs(testing::draw(generator, 1, 3), queries, keys, 4, 64), options);
  }
}

TEST_F(IndexSelectCuda, EntropyAndMaximumBudgets) {
  for (const int64_t tile : {1, 32})
    for (const std::string activation : {"sigmoid", "hard_sigmoid", "relu"}) {
      IndexSelectOptions options = make_select_options(90, activation, 2, 5);
      options.k_base = 40;
      options.query_tile = tile;
      SelectInputs in = random_select_inputs(2, 110, 470, 4, 64);
      options.budget = "entropy";
      testing::check_selection(in, options, select_on_gpu, 5);
      in.key.slice(1, 0, 470, 7).fill_(std::numeric_limits<double>::quiet_NaN());
      testing::check_selection(in, options, select_on_gpu, 5);
      options.budget = "max_score";
      testing::check_selection(in, options, select_on_gpu, 1.5);
    }
}

TEST_P(IndexSelectCudaShared, WithTies) {
  for (const int64_t tile : {2, 64, 256}) {
    check_exact(tied_select_inputs(2, 300, 700, 4, 64), shared_options(50, tile, 3, 5));
    check_exact(tied_select_inputs(1, 303, 303, 4, 64), shared_options(60, tile, 20, 40));
  }
  check_exact(tied_select_inputs(1, 130, 5000, 2, 64), shared_options(64, 64, 0, 0));  // with a sampled gate
  SelectInputs equal = tied_select_inputs(1, 100, 3000, 4, 64);
  equal.key = equal.key.slice(1, 0, 1).expand({1, 3000, 64}).contiguous();
  check_exact(equal, shared_options(128, 64, 0, 0));
}

TEST_P(IndexSelectCudaShared, NeverHoldNaN) {
  SelectInputs in = random_select_inputs(1, 150, 900, 4, 64);
  in.key.slice(1, 0, 900, 7).fill_(std::numeric_limits<double>::quiet_NaN());
  in.query.slice(1, 70, 75).fill_(std::numeric_limits<double>::quiet_NaN());
  check_selection(in, shared_options(60, 64, 1, 3));
  check_selection(in, shared_options(1000, 64, 1, 3));
}

// More scores or lists than the workspace holds at a time, and more positions than a merging block does.
TEST_P(IndexSelectCudaShared, InChunksAndWindows) {
  for (const auto& [queries, keys] :
       {std::pair<int64_t, int64_t>{12000, 12000}, {200, 120000}, {2300, 90000}})
    check_by_reference(tied_select_inputs(1, queries, keys, 4, 64), shared_options(2048, 64, 4, 128));
}

TEST_P(IndexSelectCudaRows, InChunks) {
  check_by_reference(tied_select_inputs(1, 2300, 90000, 4, 64),
                     make_select_options(2048, "hard_sigmoid", 4, 128));
}

TEST_P(IndexSelectCudaShared, TheSameTwice) {
  const SelectInputs in = random_select_inputs(2, 700, 7000, 4, 64);
  const IndexSelectOptions options = shared_options(256, 64, 4, 128, "sigmoid");
  const Selection once = select(in, options, 1), again = select(in, options, 1);
  EXPECT_TRUE(testing::same_elements(once.indices, again.indices));
  EXPECT_TRUE(testing::same_elements(once.counts, again.counts));
  EXPECT_TRUE(testing::same_elements(once.statistic, again.statistic));
}

TEST_F(IndexSelectCuda, OtherProblemsFallBackToTheReference) {
  const SelectInputs in = tied_select_inputs(1, 40, 80, 3, 16);  // three heads of sixteen
  check_exact(in, make_select_options(20, "hard_sigmoid", 1, 2));
  const SelectInputs wide = tied_select_inputs(1, 40, 80, 4, 64).on(at::Device(at::kCUDA, 0), at::kFloat);
  const IndexSelectOptions options = make_select_options(20, "hard_sigmoid", 1, 2);
  const Selection found = testing::select_where_it_is(wide, options, 1);
  const Selection expected = testing::select_where_it_is(wide.on(at::kCPU, at::kDouble), options, 1);
  EXPECT_TRUE(testing::same_elements(found.indices.cpu(), expected.indices));
}

}  // namespace
}  // namespace gsa
