// The Hopper kernels of index_select, run on the CPU by the emulation: the launcher and the kernels as nvcc
// compiles them, instructions apart.
#include "gsa/testing/cuda_emulation_sm90.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "gsa/testing/random.h"
#include "gsa/testing/selection_cases.h"

// The library has the same functions as compiled by nvcc: these must not take their place.
#pragma GCC visibility push(hidden)
#include "gsa/ops/indexer/index_select_kernel.cuh"
#include "gsa/ops/indexer/index_select_sm90.cu"

namespace gsa::fused_select {

// A few shapes are enough, and all would take minutes to compile.
cudaError_t launch_sigmoid(const IndexSelectParams& p, cudaStream_t stream) {
  return p.heads == 1 && p.dim == 32 ? launch<Shape<1, 32, IndexActivation::kSigmoid>>(p, stream)
                                     : cudaErrorNotSupported;
}
cudaError_t launch_hard_sigmoid(const IndexSelectParams& p, cudaStream_t stream) {
  return p.heads == 4 && p.dim == 64 ? launch<Shape<4, 64, IndexActivation::kHardSigmoid>>(p, stream)
                                     : cudaErrorNotSupported;
}
cudaError_t launch_relu(const IndexSelectParams& p, cudaStream_t stream) {
  return p.heads == 8 && p.dim == 128 ? launch<Shape<8, 128, IndexActivation::kRelu>>(p, stream)
                                      : cudaErrorNotSupported;
}

}  // namespace gsa::fused_select
#pragma GCC visibility pop

namespace gsa {
namespace {

using testing::check_exact_selection;
using testing::check_selection;
using testing::make_select_options;
using testing::random_select_inputs;
using testing::SelectInputs;
using testing::Selection;
using testing::tied_select_inputs;

/// index_select_cuda.cpp's part, by hand.
Selection select_emulated(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  const at::Tensor query = in.query.to(at::kBFloat16).contiguous(),
                   key = in.key.to(at::kBFloat16).contiguous();
  const at::Tensor weight = in.weight.to(at::kFloat).contiguous(), bias = in.bias.to(at::kFloat).contiguous();
  const auto average = static_cast<float>(mean);
  IndexSelectParams params;
  params.batch = query.size(0);
  params.queries = query.size(1);
  params.keys = key.size(1);
  params.heads = static_cast<int>(query.size(2));
  params.dim = static_cast<int>(query.size(3));
  params.k_base = static_cast<int>(options.k_base);
  params.k_min = static_cast<int>(options.k_min);
  params.k_max = static_cast<int>(options.k_max);
  params.capacity = static_cast<int>(selection_capacity(options));
  params.keep_first = static_cast<int>(options.keep_first);
  params.keep_recent = static_cast<int>(options.keep_recent);
  params.query_tile = static_cast<int>(options.query_tile);
  params.tile_factor = options.tile_factor;
  params.activation = options.activation == "sigmoid"        ? IndexActivation::kSigmoid
                      : options.activation == "hard_sigmoid" ? IndexActivation::kHardSigmoid
                                                             : IndexActivation::kRelu;
  params.budget = options.budget == "fixed"     ? SelectBudget::kFixed
                  : options.budget == "inverse" ? SelectBudget::kInverse
                                                : SelectBudget::kAsPrinted;
  const int64_t rows = (params.queries + options.query_tile - 1) / options.query_tile;
  const Selection found{at::full({params.batch, rows, params.capacity}, -2, at::kInt),
                        at::full({params.batch, rows}, -2, at::kInt),
                        at::full({params.batch, params.queries}, -2, at::kFloat)};
  const at::Tensor workspace =
      at::full({static_cast<int64_t>(index_select_sm90_workspace(params))}, 0x5a, at::kByte);
  params.index_query = query.const_data_ptr();
  params.index_key = key.const_data_ptr();
  params.head_weight = weight.const_data_ptr<float>();
  params.head_bias = bias.const_data_ptr<float>();
  params.running_mean = &average;
  params.indices = found.indices.mutable_data_ptr<int32_t>();
  params.counts = found.counts.mutable_data_ptr<int32_t>();
  params.statistic = found.statistic.mutable_data_ptr<float>();
  params.workspace = workspace.mutable_data_ptr();
  EXPECT_EQ(launch_index_select_sm90(params, nullptr), cudaSuccess);
  return found;
}

class IndexSelectEmulated : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(testing::run_seed()); }
};

TEST_F(IndexSelectEmulated, MatchesFp64OnRandomProblems) {
  check_selection(random_select_inputs(1, 60, 300, 4, 64), make_select_options(40, "hard_sigmoid", 4, 16),
                  select_emulated);
  check_selection(random_select_inputs(1, 40, 90, 1, 32), make_select_options(20, "sigmoid", 0, 0),
                  select_emulated);
  check_selection(random_select_inputs(1, 70, 150, 8, 128), make_select_options(30, "relu", 1, 2),
                  select_emulated);
}

TEST_F(IndexSelectEmulated, AdaptiveBudgetsAndShortRows) {
  for (const std::string budget : {"inverse", "as_printed"}) {
    IndexSelectOptions options = make_select_options(90, "hard_sigmoid", 2, 5);
    options.k_base = 40;
    options.budget = budget;
    check_selection(random_select_inputs(2, 110, 110, 4, 64), options, select_emulated);
  }
}

TEST_F(IndexSelectEmulated, TiesGoToTheLowerPosition) {
  check_exact_selection(tied_select_inputs(2, 100, 300, 4, 64), make_select_options(50, "hard_sigmoid", 3, 5),
                        select_emulated);
  SelectInputs equal = tied_select_inputs(1, 30, 500, 4, 64);  // lists fill up and boundaries overflow
  equal.key = equal.key.slice(1, 0, 1).expand({1, 500, 64}).contiguous();
  check_exact_selection(equal, make_select_options(20, "hard_sigmoid", 0, 0), select_emulated);
}

TEST_F(IndexSelectEmulated, SampledGates) {
  // More keys than lists hold; then keys that mislead the sample both ways.
  SelectInputs in = tied_select_inputs(1, 8, 2600, 4, 64);
  const IndexSelectOptions options = make_select_options(40, "hard_sigmoid", 0, 0);
  check_exact_selection(in, options, select_emulated);
  for (const double sign : {1.0, -1.0}) {
    in.key = at::randint(-1, 2, {1, 2600, 64}, at::kBFloat16) / 16;
    for (int64_t phase = 0; phase < 32; phase += 2) in.key.slice(1, phase, 2600, 32).fill_(sign / 8);
    check_exact_selection(in, options, select_emulated);
  }
}

TEST_F(IndexSelectEmulated, NaNIsNeverSelected) {
  SelectInputs in = random_select_inputs(1, 50, 200, 4, 64);
  in.key.slice(1, 0, 200, 7).fill_(std::numeric_limits<double>::quiet_NaN());
  check_selection(in, make_select_options(60, "hard_sigmoid", 1, 3), select_emulated);
  check_selection(in, make_select_options(1000, "hard_sigmoid", 1, 3), select_emulated);
}

}  // namespace
}  // namespace gsa
