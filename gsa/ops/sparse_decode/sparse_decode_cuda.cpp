// The torch side of sparse_decode's kernel: which problems it takes, allocation, launch.

#include "gsa/ops/sparse_decode/sparse_decode_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "gsa/ops/cuda_tensors.h"
#include "gsa/ops/indexer/decode_workspace_cuda.h"
#include "gsa/ops/indexer/index_select_problem.h"
#include "gsa/ops/sparse_decode/sparse_decode_sm90.h"

namespace gsa {
std::optional<SparseDecodeResult> sparse_decode_fused(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& index_query,
    const at::Tensor& index_key, const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
    const IndexSelectOptions& options, double scale, int64_t least_batch) {
  if (query.size(1) != 1 || query.size(0) < least_batch || query.scalar_type() != at::kBFloat16 ||
      index_query.scalar_type() != at::kBFloat16 ||
      (index_key.scalar_type() != at::kFloat8_e4m3fn && index_key.scalar_type() != at::kBFloat16) ||
      !is_cache(key) || !is_cache(value) || !is_cache(index_key))
    return std::nullopt;
  const c10::cuda::CUDAGuard guard(query.device());
  SparseDecodeParams params;
  set_problem(params.select, index_query, index_key, options);
  params.select.float8_keys = index_key.scalar_type() == at::kFloat8_e4m3fn;
  params.select.key_batch_stride = params.select.batch == 1 ? 0 : index_key.stride(0);
  params.key_batch_stride = params.select.batch == 1 ? 0 : key.stride(0);
  params.value_batch_stride = params.select.batch == 1 ? 0 : value.stride(0);
  params.heads = static_cast<int>(query.size(2));
  params.groups = static_cast<int>(key.size(2));
  params.dim = static_cast<int>(query.size(3));
  params.scale = static_cast<float>(scale);
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount, query);
  if (!is_hopper(query) || !sparse_decode_supported(params, multiprocessors)) return std::nullopt;
  const at::Tensor whole_query = as_aligned(query), whole_index_query = as_aligned(index_query);
  const at::Tensor weight = as_floats(head_weight, query), bias = as_floats(head_bias, query);
  const auto floats = query.options().dtype(at::kFloat);
  const SparseDecodeResult result{at::empty(query.sizes(), query.options()),
                                  at::empty(query.sizes().slice(0, 3), floats),
                                  at::empty({params.select.batch, 1}, query.options().dtype(at::kInt)),
                                  at::empty({params.select.batch, 1}, floats)};
  params.query = whole_query.const_data_ptr();
  params.key = key.const_data_ptr();
  params.value = value.const_data_ptr();
  params.out = result.out.mutable_data_ptr();
  params.lse = result.lse.mutable_data_ptr<float>();
  params.select.index_query = whole_index_query.const_data_ptr();
  params.select.index_key = index_key.const_data_ptr();
  params.select.head_weight = weight.const_data_ptr<float>();
  params.select.head_bias = floats_or_null(bias);
  params.select.counts = result.counts.mutable_data_ptr<int32_t>();
  params.select.statistic = result.statistic.mutable_data_ptr<float>();
  with_decode_workspace(
      sparse_decode_workspace_bytes(params, multiprocessors),
      sparse_decode_zeroed_bytes(params, multiprocessors), query, [&](void* memory, bool zeroed) {
        params.select.workspace = memory;
        params.select.workspace_zeroed = zeroed;
        C10_CUDA_CHECK(launch_sparse_decode(params, c10::cuda::getCurrentCUDAStream().stream()));
      });
  return result;
}

}  // namespace gsa
