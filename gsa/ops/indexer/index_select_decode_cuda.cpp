// The torch side of index_select's decode kernel: which problems it takes, allocation, launch.

#include "gsa/ops/indexer/index_select_decode_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "gsa/base/check.h"
#include "gsa/ops/cuda_tensors.h"
#include "gsa/ops/indexer/decode_workspace_cuda.h"
#include "gsa/ops/indexer/index_select_decode.h"
#include "gsa/ops/indexer/index_select_problem.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_select";

/// bf16, or FP8 for the dimensions that have a kernel for it; bf16 holds e4m3 exactly.
at::Tensor as_kernel_dtype(const at::Tensor& index_key) {
  const int64_t dim = index_key.size(2);
  const bool float8 = index_key.scalar_type() == at::kFloat8_e4m3fn && (dim == 64 || dim == 128);
  return float8 ? index_key : index_key.to(at::kBFloat16);
}

/// Each token's index key is contiguous and follows the one before, 16-byte aligned: views of a cache are.
bool loadable(const at::Tensor& index_key) {
  return index_key.stride(2) == 1 && (index_key.size(1) == 1 || index_key.stride(1) == index_key.size(2)) &&
         is_aligned(index_key);
}

/// A cache of one sequence for the kernel to prefetch; none where it cannot.
ReadNext prefetchable(const at::Tensor& cache) {
  const int64_t bytes = cache.numel() / cache.size(1) * cache.element_size();  // of a token
  if (!is_cache(cache) || bytes % 16 != 0) return {};
  return {cache.const_data_ptr(), static_cast<int>(bytes)};
}

}  // namespace

std::optional<std::tuple<at::Tensor, at::Tensor, at::Tensor>> index_select_decode(
    const at::Tensor& index_query, const at::Tensor& index_key, const at::Tensor& head_weight,
    const std::optional<at::Tensor>& head_bias, const std::optional<at::Tensor>& running_mean,
    const IndexSelectOptions& options, const std::optional<at::Tensor>& log_scale,
    const std::optional<at::Tensor>& lengths, at::TensorList read_next) {
  if (index_query.size(1) > decode::kMaxTokens || index_query.scalar_type() != at::kBFloat16)
    return std::nullopt;
  const c10::cuda::CUDAGuard guard(index_query.device());
  const at::Tensor typed_key = as_kernel_dtype(index_key);
  const at::Tensor key = loadable(typed_key) ? typed_key : typed_key.clone(at::MemoryFormat::Contiguous);
  IndexSelectDecodeParams params;
  set_problem(params, index_query, key, options);
  params.key_batch_stride = params.batch == 1 ? 0 : key.stride(0);
  params.float8_keys = key.scalar_type() == at::kFloat8_e4m3fn;
  if (!is_hopper(key) || !index_select_decode_supported(params)) return std::nullopt;
  const at::Tensor query = as_aligned(index_query);
  const at::Tensor weight = as_floats(head_weight, query), bias = as_floats(head_bias, query);
  const at::Tensor mean = as_floats(running_mean, query), scale = as_floats(log_scale, query);
  at::Tensor row_lengths;
  if (lengths) {
    check_shape(kOp, "lengths", *lengths, {params.batch}, "[B]");
    check_dtype(kOp, "lengths", *lengths, at::kInt);
    check_same_device(kOp, "lengths", *lengths, "index_query", index_query);
    row_lengths = lengths->contiguous();
    params.lengths = row_lengths.const_data_ptr<int32_t>();
  }
  const auto ints = query.options().dtype(at::kInt);
  const at::Tensor indices = at::empty({params.batch, params.queries, params.capacity}, ints);
  const at::Tensor counts = at::empty({params.batch, params.queries}, ints);
  const at::Tensor statistic = at::empty({params.batch, params.queries}, query.options().dtype(at::kFloat));
  params.index_query = query.const_data_ptr();
  params.index_key = key.const_data_ptr();
  params.head_weight = weight.const_data_ptr<float>();
  params.head_bias = floats_or_null(bias);
  params.running_mean = floats_or_null(mean);
  params.log_scale = floats_or_null(scale);
  params.indices = indices.mutable_data_ptr<int32_t>();
  params.counts = counts.mutable_data_ptr<int32_t>();
  params.statistic = statistic.mutable_data_ptr<float>();
  for (size_t i = 0; i < read_next.size() && params.batch == 1; ++i)
    params.read_next[i] = prefetchable(read_next[i]);
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount, query);
  with_decode_workspace(
      index_select_decode_workspace_bytes(params, multiprocessors),
      index_select_decode_zeroed_bytes(params, multiprocessors), query, [&](void* memory, bool zeroed) {
        params.workspace = memory;
        params.workspace_zeroed = zeroed;
        C10_CUDA_CHECK(launch_index_select_decode(params, c10::cuda::getCurrentCUDAStream().stream()));
      });
  return std::make_tuple(indices, counts, statistic);
}

}  // namespace gsa
