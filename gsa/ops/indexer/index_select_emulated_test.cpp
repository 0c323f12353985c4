// The Hopper kernels of index_select, run on the CPU by the emulation.
#include "gsa/testing/index_select_emulated.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/randint.h>

#include <limits>
#include <string>
#include <vector>

#include "gsa/testing/random.h"

namespace gsa {
namespace {

using testing::check_exact_selection;
using testing::check_selection;
using testing::make_select_options;
using testing::never_stored;
using testing::random_select_inputs;
using testing::run_emulated;
using testing::select_emulated;
using testing::select_from_lists;
using testing::select_in_place;
using testing::SelectInputs;
using testing::tied_select_inputs;

/// In chunks of so many bytes of lists, and the smallest windows.
testing::Selector select_in_chunks(size_t workspace) {
  return [workspace](const SelectInputs& in, const IndexSelectOptions& options, double mean) {
    fused_select::SelectLimits limits = never_stored();
    limits.workspace = workspace;
    limits.window = fused_select::kMergeStep;
    IndexSelectParams params;
    set_problem(params, in.query, in.key, options);
    const auto plan = fused_select::plan_lists(params, emulation::multiprocessors, limits);
    EXPECT_GT(plan.chunks.count, 1);
    EXPECT_LT(plan.window, params.keys);
    return run_emulated(in, options, mean, limits);
  };
}

class IndexSelectEmulated : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(testing::run_seed()); }
};

/// What holds however rows are finished.
class IndexSelectEmulatedRows : public IndexSelectEmulated,
                                public ::testing::WithParamInterface<testing::Selector> {};
constexpr const char* kWays[] = {"Stored", "Lists", "InPlace"};
INSTANTIATE_TEST_SUITE_P(Ways, IndexSelectEmulatedRows,
                         ::testing::Values(testing::Selector(select_emulated),
                                           testing::Selector(select_from_lists),
                                           testing::Selector(select_in_place)),
                         [](const auto& info) { return kWays[info.index]; });

/// And of rows that queries share.
class IndexSelectEmulatedShared : public IndexSelectEmulatedRows {};
INSTANTIATE_TEST_SUITE_P(Ways, IndexSelectEmulatedShared,
                         ::testing::Values(testing::Selector(select_emulated),
                                           testing::Selector(select_from_lists)),
                         [](const auto& info) { return kWays[info.index]; });

TEST_P(IndexSelectEmulatedRows, MatchesFp64OnRandomProblems) {
  check_selection(random_select_inputs(1, 60, 300, 4, 64), make_select_options(40, "hard_sigmoid", 4, 16),
                  GetParam());
  check_selection(random_select_inputs(1, 40, 90, 1, 32), make_select_options(20, "sigmoid", 0, 0),
                  GetParam());
  check_selection(random_select_inputs(1, 70, 150, 8, 128), make_select_options(30, "relu", 1, 2),
                  GetParam());
  check_selection(random_select_inputs(1, 40, 3000, 4, 64), make_select_options(70, "hard_sigmoid", 4, 16),
                  GetParam());  // more keys than lists hold
}

TEST_P(IndexSelectEmulatedRows, AdaptiveBudgetsAndShortRows) {
  for (const std::string budget : {"inverse", "as_printed"}) {
    IndexSelectOptions options = make_select_options(90, "hard_sigmoid", 2, 5);
    options.k_base = 40;
    options.budget = budget;
    check_selection(random_select_inputs(2, 110, 110, 4, 64), options, GetParam());
  }
}

// Where no budget leaves a key out, rows need no list.
TEST_P(IndexSelectEmulatedRows, WholeRows) {
  for (const std::string activation : {"hard_sigmoid", "sigmoid"}) {
    const bool hard = activation == "hard_sigmoid";
    IndexSelectOptions options = make_select_options(90, activation, 2, 5);
    options.k_min = 90;
    SelectInputs in = random_select_inputs(1, 130, 130, hard ? 4 : 1, hard ? 64 : 32);
    check_selection(in, options, GetParam());
    in.key.slice(1, 0, 130, 7).fill_(std::numeric_limits<double>::quiet_NaN());  // these are left out
    check_selection(in, options, GetParam());
  }
}

TEST_P(IndexSelectEmulatedRows, TiesGoToTheLowerPosition) {
  check_exact_selection(tied_select_inputs(2, 100, 300, 4, 64), make_select_options(50, "hard_sigmoid", 3, 5),
                        GetParam());
  SelectInputs equal = tied_select_inputs(1, 30, 2600, 4, 64);  // lists fill up and boundaries overflow
  equal.key = equal.key.slice(1, 0, 1).expand({1, 2600, 64}).contiguous();
  check_exact_selection(equal, make_select_options(20, "hard_sigmoid", 0, 0), GetParam());
}

TEST_P(IndexSelectEmulatedRows, SampledGates) {
  // More keys than lists hold; then keys that mislead the sample both ways.
  SelectInputs in = tied_select_inputs(1, 8, 2600, 4, 64);
  const IndexSelectOptions options = make_select_options(40, "hard_sigmoid", 0, 0);
  check_exact_selection(in, options, GetParam());
  for (const double sign : {1.0, -1.0}) {
    in.key = at::randint(-1, 2, {1, 2600, 64}, at::kBFloat16) / 16;
    for (int64_t phase = 0; phase < 32; phase += 2) in.key.slice(1, phase, 2600, 32).fill_(sign / 8);
    check_exact_selection(in, options, GetParam());
  }
}

// The bitmap of a row holds 64K positions: longer rows are read once a window, from where it begins in the
// list.
TEST_F(IndexSelectEmulated, RowsOfSeveralWindows) {
  check_exact_selection(tied_select_inputs(1, 3, 140000, 4, 64),
                        make_select_options(900, "hard_sigmoid", 4, 30), select_emulated);
  SelectInputs in =
      tied_select_inputs(1, 2, 70000, 4, 64);  // nothing chosen in the first window but what is kept
  in.key.slice(1, 0, 66000).fill_(-1);
  in.query = in.query.abs();
  check_exact_selection(in, make_select_options(500, "hard_sigmoid", 4, 30), select_emulated);
}

TEST_P(IndexSelectEmulatedRows, NaNIsNeverSelected) {
  SelectInputs in = random_select_inputs(1, 50, 200, 4, 64);
  in.key.slice(1, 0, 200, 7).fill_(std::numeric_limits<double>::quiet_NaN());
  check_selection(in, make_select_options(60, "hard_sigmoid", 1, 3), GetParam());
  check_selection(in, make_select_options(1000, "hard_sigmoid", 1, 3), GetParam());
}

IndexSelectOptions shared_options(int64_t k, int64_t query_tile, int64_t first, int64_t recent,
                                  const std::string& activation = "hard_sigmoid") {
  IndexSelectOptions options = make_select_options(k, activation, first, recent);
  options.query_tile = query_tile;
  return options;
}

TEST_P(IndexSelectEmulatedShared, SharedRowsMatchFp64OnRandomProblems) {
  check_selection(random_select_inputs(1, 150, 400, 4, 64), shared_options(40, 64, 4, 16), GetParam());
  check_selection(random_select_inputs(2, 130, 130, 4, 64), shared_options(30, 64, 0, 0), GetParam());
  check_selection(random_select_inputs(1, 90, 200, 1, 32), shared_options(20, 16, 1, 3, "sigmoid"),
                  GetParam());
  check_selection(random_select_inputs(1, 70, 150, 8, 128), shared_options(30, 7, 1, 2, "relu"), GetParam());
}

TEST_P(IndexSelectEmulatedShared, SharedRowsWithTies) {
  for (const int64_t tile : {2, 64, 100}) {
    SCOPED_TRACE(::testing::Message() << "query_tile " << tile);
    check_exact_selection(tied_select_inputs(2, 110, 300, 4, 64), shared_options(50, tile, 3, 5), GetParam());
    // First tiles with nothing, or less than the budget, before them; kept positions that overlap.
    check_exact_selection(tied_select_inputs(1, 203, 203, 4, 64), shared_options(60, tile, 20, 40),
                          GetParam());
  }
  SelectInputs equal = tied_select_inputs(1, 40, 2600, 4, 64);  // lists fill up and boundaries overflow
  equal.key = equal.key.slice(1, 0, 1).expand({1, 2600, 64}).contiguous();
  check_exact_selection(equal, shared_options(20, 16, 0, 0), GetParam());
}

TEST_P(IndexSelectEmulatedShared, SharedRowsMatchTheReferenceOnRandomShapes) {
  for (int64_t trial = 0; trial < 8; ++trial) {
    auto generator = testing::case_generator(trial);
    const int64_t queries = testing::draw(generator, 1, 130),
                  keys = queries + testing::draw(generator, 0, 1) * testing::draw(generator, 0, 300);
    const int64_t first = testing::draw(generator, 0, 1) * testing::draw(generator, 0, 40),
                  recent = testing::draw(generator, 0, 1) * testing::draw(generator, 0, 90);
    IndexSelectOptions options = shared_options(first + recent + testing::draw(generator, 1, 120),
                                                testing::draw(generator, 2, 140), first, recent);
    options.tile_factor = std::vector<double>{1, 1.3, 1.5, 2.5}[testing::draw(generator, 0, 3)];
    SCOPED_TRACE(::testing::Message()
                 << "trial " << trial << ": T " << queries << " S " << keys << " k " << options.k_max
                 << " query_tile " << options.query_tile << " keep " << first << " + " << recent);
    check_exact_selection(tied_select_inputs(1, queries, keys, 4, 64), options, GetParam());
  }
}

TEST_P(IndexSelectEmulatedShared, SharedRowsWithAdaptiveBudgets) {
  for (const std::string budget : {"inverse", "as_printed"}) {
    IndexSelectOptions options = shared_options(90, 32, 2, 5);
    options.k_base = 40;
    options.budget = budget;
    options.tile_factor = budget == "inverse" ? 1.0 : 1.3;
    check_selection(random_select_inputs(2, 110, 170, 4, 64), options, GetParam());
  }
}

TEST_F(IndexSelectEmulated, EntropyAndMaximumBudgets) {
  for (const int64_t tile : {1, 32}) {
    IndexSelectOptions options = make_select_options(90, "hard_sigmoid", 2, 5);
    options.k_base = 40;
    options.query_tile = tile;
    options.budget = "entropy";
    SelectInputs in = random_select_inputs(2, 110, 170, 4, 64);
    check_selection(in, options, select_emulated, 4.5);
    in.key.slice(1, 0, 170, 7).fill_(std::numeric_limits<double>::quiet_NaN());
    check_selection(in, options, select_emulated, 4.5);
    options.budget = "max_score";
    options.activation = "sigmoid";
    check_selection(in, options, select_emulated, 1.5);
  }
}

TEST_P(IndexSelectEmulatedShared, SharedRowsBehindSampledGates) {
  SelectInputs in = tied_select_inputs(1, 20, 2600, 4, 64);
  const IndexSelectOptions options = shared_options(40, 8, 0, 0);
  check_exact_selection(in, options, GetParam());
  for (const double sign : {1.0, -1.0}) {
    in.key = at::randint(-1, 2, {1, 2600, 64}, at::kBFloat16) / 16;
    for (int64_t phase = 0; phase < 32; phase += 2) in.key.slice(1, phase, 2600, 32).fill_(sign / 8);
    check_exact_selection(in, options, GetParam());
  }
}

TEST_P(IndexSelectEmulatedShared, SharedRowsNeverHoldNaN) {
  SelectInputs in = random_select_inputs(1, 100, 260, 4, 64);
  in.key.slice(1, 0, 260, 7).fill_(std::numeric_limits<double>::quiet_NaN());
  in.query.slice(1, 70, 75).fill_(std::numeric_limits<double>::quiet_NaN());
  check_selection(in, shared_options(60, 32, 1, 3), GetParam());
  check_selection(in, shared_options(1000, 64, 1, 3), GetParam());
}

TEST_F(IndexSelectEmulated, SharedRowsInChunksAndWindows) {
  // Two of three sequences together, then parts of a sequence. Small steps up in score make the merged list
  // overflow time and again.
  const auto rising = [](int64_t batch, int64_t queries, int64_t keys) {
    SelectInputs in = tied_select_inputs(batch, queries, keys, 4, 64);
    const at::Tensor ramp = (at::arange(keys) / 80).to(at::kBFloat16).view({1, keys, 1}) / 64;
    in.key = ramp.expand({batch, keys, 64}).contiguous();
    in.query = at::randint(0, 3, {batch, queries, 4, 64}, at::kBFloat16) / 64;
    return in;
  };
  check_exact_selection(rising(3, 24, 4500), shared_options(100, 16, 4, 30),
                        select_in_chunks(size_t{3} << 19));
  check_exact_selection(rising(1, 110, 2500), shared_options(100, 20, 4, 30),
                        select_in_chunks(size_t{1} << 20));
  // Lists of several of the parts that the merge reads at a time.
  check_exact_selection(rising(1, 40, 4500), shared_options(800, 8, 4, 30),
                        select_in_chunks(size_t{1} << 20));
}

// Scores of several sequences together, then of parts of one.
TEST_F(IndexSelectEmulated, StoredScoresInChunks) {
  for (const int64_t tile : {1, 24}) {
    const auto in_chunks = [tile](const SelectInputs& in, const IndexSelectOptions& options, double mean) {
      fused_select::SelectLimits limits;
      limits.workspace = tile == 1 ? size_t{150} << 10 : size_t{400} << 10;
      IndexSelectParams params;
      set_problem(params, in.query, in.key, options);
      EXPECT_GT(fused_select::plan_scores(params, limits).count, 1);
      return run_emulated(in, options, mean, limits);
    };
    IndexSelectOptions options = make_select_options(50, "hard_sigmoid", 3, 5);
    options.query_tile = tile;
    check_exact_selection(tied_select_inputs(3, 70, 333, 4, 64), options, in_chunks);
    check_exact_selection(tied_select_inputs(2, 250, 600, 4, 64), options, in_chunks);
  }
}

// Rows whose scores are saturated, the lowest one or others, or nearly so.
TEST_F(IndexSelectEmulated, StoredCodesThatTie) {
  const IndexSelectOptions options = make_select_options(150, "hard_sigmoid", 3, 5);
  SelectInputs in = tied_select_inputs(1, 20, 1200, 4, 64);
  for (const double factor : {-16, 16, 4}) {
    in.key = at::randint(0, 3, {1, 1200, 1}, at::kBFloat16).expand({1, 1200, 64}) * factor;
    in.query = at::randint(0, 2, {1, 20, 4, 64}, at::kBFloat16);
    check_exact_selection(in, options, select_emulated);
  }
  in = tied_select_inputs(1, 20, 1200, 4, 64);
  in.weight -= 0.625;  // scores of either sign
  check_exact_selection(in, options, select_emulated);
  in.key.slice(1, 0, 1200, 11).fill_(std::numeric_limits<double>::quiet_NaN());
  check_exact_selection(in, options, select_emulated);
  check_exact_selection(in, make_select_options(1190, "hard_sigmoid", 3, 5), select_emulated);
  in.query.fill_(1);
  in.key.fill_(-16);
  check_exact_selection(in, options, select_emulated);
}

// Scores so close that they share a bin of codes, or a code; their variance is found from scores then.
TEST_F(IndexSelectEmulated, StoredCodesOfCloseScores) {
  for (const double spread : {0x1p-4, 0x1p-7, 0x1p-11}) {
    SelectInputs in = random_select_inputs(1, 10, 1500, 4, 64);
    in.query = in.query.abs();
    in.key = (in.key * spread).to(at::kBFloat16);
    for (const std::string budget : {"fixed", "inverse"}) {
      IndexSelectOptions options = make_select_options(500, "hard_sigmoid", 4, 16);
      options.budget = budget;
      options.k_base = 100;
      check_selection(in, options, select_emulated, 1e-4);
    }
  }
}

// Weights of which no codes can be made, or too small ones, beside others.
TEST_F(IndexSelectEmulated, StoredCodesOfWildWeights) {
  SelectInputs in = tied_select_inputs(2, 40, 400, 4, 64);
  double value = std::numeric_limits<double>::infinity();
  for (int64_t t = 0; t < 40; t += 5) {
    in.weight.select(1, t).select(1, t % 4).fill_(value);
    value = t == 0 ? -value : t == 5 ? std::numeric_limits<double>::quiet_NaN() : t == 10 ? 0x1p70 : 0x1p-70;
  }
  in.weight.select(1, 38).fill_(0);
  in.weight.select(1, 39).fill_(0x1p-70);
  check_exact_selection(in, make_select_options(100, "hard_sigmoid", 3, 5), select_emulated);
  check_exact_selection(in, make_select_options(390, "hard_sigmoid", 3, 5), select_emulated);
}

// Lengths about a block of keys, an eighth of it and a tile; more positions than are put in order at a time.
TEST_F(IndexSelectEmulated, StoredCodesOfAnyLength) {
  for (const int64_t keys : {1, 7, 8, 9, 33, 64, 65, 129})
    for (const int64_t queries : {int64_t{1}, (keys + 1) / 2, keys}) {
      SCOPED_TRACE(::testing::Message() << "T " << queries << " S " << keys);
      check_exact_selection(tied_select_inputs(2, queries, keys, 4, 64),
                            make_select_options(20, "hard_sigmoid", 3, 5), select_emulated);
    }
  check_exact_selection(tied_select_inputs(1, 3, 7000, 4, 64),
                        make_select_options(5001, "hard_sigmoid", 4, 30), select_emulated);
}

// ReLU leaves nearly all scores zero.
TEST_P(IndexSelectEmulatedRows, ManyZeros) {
  SelectInputs in = tied_select_inputs(1, 40, 700, 8, 128);
  in.bias.fill_(-1.5);
  // Fewer than there are others, about as many (some 60 of 700), more.
  for (const int64_t k : {20, 54, 60, 66, 100, 690})
    check_selection(in, make_select_options(k, "relu", 1, 2), GetParam());
  in.weight -= 0.5;  // negative scores, too
  check_selection(in, make_select_options(100, "relu", 1, 2), GetParam());
}

// Rows whose scores lie far apart, or nearly all in one bin: the histogram does not tell.
TEST_F(IndexSelectEmulated, StoredScoresOutOfScale) {
  SelectInputs in = tied_select_inputs(1, 40, 700, 8, 128);
  in.key.slice(1, 100, 700, 50).mul_(1e6);
  check_selection(in, make_select_options(30, "relu", 1, 2), select_emulated);
  in.key.slice(1, 100, 700, 50).fill_(std::numeric_limits<double>::infinity());
  check_selection(in, make_select_options(30, "relu", 1, 2), select_emulated);
}

// Queries that agree leave a row short of keys with a positive margin: it is done again with longer lists.
TEST_P(IndexSelectEmulatedShared, SharedRowsOfQueriesThatAgree) {
  SelectInputs in = tied_select_inputs(2, 96, 700, 4, 64);
  in.query = in.query.slice(1, 0, 1).expand_as(in.query).contiguous();
  in.weight = in.weight.slice(1, 0, 1).expand_as(in.weight).contiguous();
  check_exact_selection(in, shared_options(60, 16, 2, 8), GetParam());
  // Only the last sequence's queries agree.
  SelectInputs mixed = tied_select_inputs(2, 96, 700, 4, 64);
  mixed.query.slice(0, 1, 2).copy_(in.query.slice(0, 1, 2));
  mixed.weight.slice(0, 1, 2).copy_(in.weight.slice(0, 1, 2));
  check_exact_selection(mixed, shared_options(60, 16, 2, 8), GetParam());
}

}  // namespace
}  // namespace gsa
