// The torch side of index_select's Hopper kernel: which problems it takes, allocation, launch.

#include "gsa/ops/indexer/index_select_cuda.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <string>

#include "gsa/ops/cuda_tensors.h"
#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/indexer/index_select_decode_cuda.h"
#include "gsa/ops/indexer/index_select_problem.h"
#include "gsa/ops/indexer/index_select_sm90.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_select";

std::tuple<at::Tensor, at::Tensor, at::Tensor> index_select_cuda(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean, int64_t k_base,
    int64_t k_min, int64_t k_max, c10::string_view budget, c10::string_view activation, int64_t query_tile,
    int64_t keep_first, int64_t keep_recent, double tile_factor, const std::optional<at::Tensor>& log_scale) {
  const IndexSelectOptions options{
      k_base,     k_min,      k_max,       std::string(budget), std::string(activation),
      query_tile, keep_first, keep_recent, tile_factor};
  check_index_select(index_query, index_key, head_weight, head_bias, running_mean, options, log_scale);
  const c10::cuda::CUDAGuard guard(index_query.device());
  if (const auto decoded = index_select_decode(index_query, index_key, head_weight, head_bias, running_mean,
                                               options, log_scale))
    return *decoded;
  if (const auto selected = index_select_fused(index_query, index_key, head_weight, head_bias, running_mean,
                                               options, log_scale))
    return *selected;
  TORCH_WARN_ONCE(kOp, ": no fused kernel for ", index_query.scalar_type(), " with J = ", index_query.size(2),
                  ", I = ", index_query.size(3), ", budget '", options.budget, "', query_tile ", query_tile,
                  " on this device; falling back to the slower reference");
  return index_select_reference(index_query, index_key, head_weight, head_bias, running_mean, k_base, k_min,
                                k_max, budget, activation, query_tile, keep_first, keep_recent, tile_factor,
                                log_scale);
}

}  // namespace

std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> index_select_fused(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale,
    const fused_select::SelectLimits& limits) {
  const c10::cuda::CUDAGuard guard(index_query.device());
  IndexSelectParams params;
  set_problem(params, index_query, index_key, options);
  if (index_query.scalar_type() != at::kBFloat16 || !is_hopper(index_query) ||
      !index_select_sm90_takes(params))
    return std::nullopt;
  const at::Tensor query = as_aligned(index_query);
  const at::Tensor key = as_aligned(index_key.to(at::kBFloat16));  // exact, for the FP8 keys of a cache
  const at::Tensor weight = as_floats(head_weight, query), bias = as_floats(head_bias, query);
  const at::Tensor mean = as_floats(running_mean, query), scale = as_floats(log_scale, query);
  const int64_t rows = (params.queries + options.query_tile - 1) / options.query_tile;
  const auto ints = query.options().dtype(at::kInt);
  const at::Tensor indices = at::empty({params.batch, rows, params.capacity}, ints);
  const at::Tensor counts = at::empty({params.batch, rows}, ints);
  const at::Tensor statistic = at::empty({params.batch, params.queries}, query.options().dtype(at::kFloat));
  const at::Tensor workspace = at::empty({static_cast<int64_t>(index_select_sm90_workspace(params, limits))},
                                         query.options().dtype(at::kByte));
  params.index_query = query.const_data_ptr();
  params.index_key = key.const_data_ptr();
  params.head_weight = floats_or_null(weight);
  params.head_bias = floats_or_null(bias);
  params.running_mean = floats_or_null(mean);
  params.log_scale = floats_or_null(scale);
  params.indices = indices.mutable_data_ptr<int32_t>();
  params.counts = counts.mutable_data_ptr<int32_t>();
  params.statistic = statistic.mutable_data_ptr<float>();
  params.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(launch_index_select_sm90(params, c10::cuda::getCurrentCUDAStream().stream(), limits));
  return std::make_tuple(indices, counts, statistic);
}

TORCH_LIBRARY_IMPL(gsa, CUDA, library) {
  library.impl("index_select", index_select_cuda);
}

}  // namespace gsa
