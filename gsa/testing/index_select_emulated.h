#pragma once
// The Hopper kernels of index_select on the CPU: the launchers and the kernels as nvcc compiles them,
// instructions apart. For one test's source file: this header defines functions.
#include "gsa/testing/cuda_emulation_mma.h"
#include "gsa/testing/cuda_emulation_sm90.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include "gsa/ops/indexer/index_select_problem.h"
#include "gsa/testing/selection_cases.h"

// The library has the same functions as compiled by nvcc: these must not take their place.
#pragma GCC visibility push(hidden)
#include "gsa/ops/indexer/index_select_kept_sm90.cu"
#include "gsa/ops/indexer/index_select_kernel.cuh"
#include "gsa/ops/indexer/index_select_sm90.cu"
#include "gsa/ops/indexer/index_select_softmax_sm90.cu"
#include "gsa/ops/indexer/index_select_stored_sm90.cu"

namespace gsa::fused_select {

// A few shapes are enough, and all would take minutes to compile.
static cudaError_t launch_some(const IndexSelectParams& p, cudaStream_t stream) {
  using enum IndexActivation;
  if (p.heads == 4 && p.dim == 64 && p.activation == kHardSigmoid)
    return launch<Shape<4, 64, kHardSigmoid>>(p, stream);
  if (p.heads == 1 && p.dim == 32 && p.activation == kSigmoid)
    return launch<Shape<1, 32, kSigmoid>>(p, stream);
  if (p.heads == 8 && p.dim == 128 && p.activation == kRelu) return launch<Shape<8, 128, kRelu>>(p, stream);
  return cudaErrorNotSupported;
}

cudaError_t launch_sigmoid(const IndexSelectParams& p, cudaStream_t stream) {
  return launch_some(p, stream);
}
cudaError_t launch_hard_sigmoid(const IndexSelectParams& p, cudaStream_t stream) {
  return launch_some(p, stream);
}
cudaError_t launch_relu(const IndexSelectParams& p, cudaStream_t stream) {
  return launch_some(p, stream);
}

}  // namespace gsa::fused_select
#pragma GCC visibility pop

namespace gsa::testing {

/// index_select_cuda.cpp's part, by hand.
inline Selection run_emulated(const SelectInputs& in, const IndexSelectOptions& options, double mean,
                              const fused_select::SelectLimits& limits) {
  const at::Tensor query = in.query.to(at::kBFloat16).contiguous(),
                   key = in.key.to(at::kBFloat16).contiguous();
  const at::Tensor weight = in.weight.to(at::kFloat).contiguous(), bias = in.bias.to(at::kFloat).contiguous();
  const auto average = static_cast<float>(mean);
  IndexSelectParams params;
  set_problem(params, query, key, options);
  params.log_scale = &kSelectLogScale;
  params.index_query = query.const_data_ptr();
  params.index_key = key.const_data_ptr();
  params.head_weight = weight.const_data_ptr<float>();
  params.head_bias = bias.const_data_ptr<float>();
  params.running_mean = &average;
  const int64_t rows = (params.queries + options.query_tile - 1) / options.query_tile;
  const Selection found{at::full({params.batch, rows, params.capacity}, -2, at::kInt),
                        at::full({params.batch, rows}, -2, at::kInt),
                        at::full({params.batch, params.queries}, -2, at::kFloat)};
  params.indices = found.indices.mutable_data_ptr<int32_t>();
  params.counts = found.counts.mutable_data_ptr<int32_t>();
  params.statistic = found.statistic.mutable_data_ptr<float>();
  const size_t bytes = index_select_sm90_workspace(params, limits);
  // What lies behind must not be touched.
  const at::Tensor workspace = at::full({static_cast<int64_t>(bytes) + 64}, 0x5a, at::kByte);
  params.workspace = workspace.mutable_data_ptr();
  EXPECT_EQ(launch_index_select_sm90(params, nullptr, limits), cudaSuccess);
  EXPECT_TRUE(workspace.slice(0, static_cast<int64_t>(bytes)).eq(0x5a).all().item<bool>());
  return found;
}

inline Selection select_emulated(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  return run_emulated(in, options, mean, {});
}

inline fused_select::SelectLimits never_stored() {
  fused_select::SelectLimits limits;
  limits.stored_keys = limits.coded_keys = limits.stored_shared_keys = limits.stored_queries =
      limits.stored_shared_queries = 0;
  return limits;
}

/// Rows from lists, finished by a kernel of their own.
inline Selection select_from_lists(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  return run_emulated(in, options, mean, never_stored());
}

/// Rows finished by the kernel that streams the keys, as long ones are.
inline Selection select_in_place(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  fused_select::SelectLimits limits = never_stored();
  limits.most_keys = 0;
  return run_emulated(in, options, mean, limits);
}

}  // namespace gsa::testing
