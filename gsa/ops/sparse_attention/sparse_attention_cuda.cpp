// The torch side of the sparse attention kernels: which kernel takes which problem, allocation, launch.

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "gsa/ops/cuda_tensors.h"
#include "gsa/ops/element_type.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"
#include "gsa/ops/sparse_attention/sparse_attention_decode.h"
#include "gsa/ops/sparse_attention/sparse_attention_params.h"

namespace gsa {
namespace {

constexpr const char* kOp = "sparse_attention";

/// Rows of E contiguous elements that 16-byte loads can read: a copy where the tensor is not that already.
at::Tensor as_loadable(const at::Tensor& x) {
  const int64_t unit = 16 / static_cast<int64_t>(x.element_size());
  bool fits = x.stride(3) == 1 && is_aligned(x);
  for (int64_t i = 0; i < 3; ++i) fits = fits && (x.size(i) == 1 || x.stride(i) % unit == 0);
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

void copy_strides(const at::Tensor& x, int64_t (&strides)[3]) {
  for (int64_t i = 0; i < 3; ++i) strides[i] = x.stride(i);
}

SparseAttentionParams sizes_of(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                               int64_t query_tile, std::optional<double> scale) {
  SparseAttentionParams params{};
  params.batch = static_cast<int>(query.size(0));
  params.queries = static_cast<int>(query.size(1));
  params.keys = static_cast<int>(key.size(1));
  params.heads = static_cast<int>(query.size(2));
  params.kv_heads = static_cast<int>(key.size(2));
  params.dim = static_cast<int>(query.size(3));
  params.rows = static_cast<int>(indices.size(1));
  params.capacity = static_cast<int>(indices.size(2));
  params.query_tile = static_cast<int>(query_tile);
  params.scale = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(3)))));
  return params;
}

/// Sizes are ints in the kernels, and a grid has at most 2^31 - 1 blocks.
bool small_enough(const at::Tensor& query, const at::Tensor& key) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  return key.size(1) <= kMost / 2 && query.size(0) * (query.size(1) + 64) * query.size(2) <= kMost;
}

/// The same problem for the decode kernel, which wants few queries and tokens that lie one after the other:
/// views of a cache do.
std::optional<SparseAttentionDecodeParams> decode_params(const SparseAttentionParams& p) {
  const int64_t token = int64_t{p.kv_heads} * p.dim, heads = int64_t{p.heads} * p.dim;
  const auto packed = [&](const int64_t(&stride)[3]) {
    return (p.keys == 1 || stride[1] == token) && (p.kv_heads == 1 || stride[2] == p.dim);
  };
  const bool query_packed = (p.batch == 1 || p.query_stride[0] == p.queries * heads) &&
                            (p.queries == 1 || p.query_stride[1] == heads) &&
                            (p.heads == 1 || p.query_stride[2] == p.dim);
  if (p.type != ElementType::kBfloat16 || !query_packed || !packed(p.key_stride) || !packed(p.value_stride))
    return std::nullopt;
  SparseAttentionDecodeParams decode;
  decode.query = p.query;
  decode.key = p.key;
  decode.value = p.value;
  decode.indices = p.indices;
  decode.counts = p.counts;
  decode.out = p.out;
  decode.lse = p.lse;
  decode.batch = p.batch;
  decode.queries = p.queries;
  decode.keys = p.keys;
  decode.key_batch_stride = p.batch == 1 ? 0 : p.key_stride[0];
  decode.value_batch_stride = p.batch == 1 ? 0 : p.value_stride[0];
  decode.heads = p.heads;
  decode.groups = p.kv_heads;
  decode.dim = p.dim;
  decode.capacity = p.capacity;
  decode.query_tile = p.query_tile;
  decode.scale = p.scale;
  return sparse_attention_decode_supported(decode) ? std::optional(decode) : std::nullopt;
}

cudaError_t launch(const SparseAttentionParams& params, const at::Tensor& like) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  if (is_hopper(like)) {
    if (const auto decode = decode_params(params)) return launch_sparse_attention_decode(*decode, stream);
    const size_t bytes = sparse_attention_forward_workspace_sm90(params);
    const at::Tensor workspace = at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
    const cudaError_t error =
        launch_sparse_attention_forward_sm90(params, workspace.mutable_data_ptr(), stream);
    if (error != cudaErrorNotSupported) return error;
  }
  TORCH_WARN_ONCE(kOp, ": no Hopper kernel for ", like.scalar_type(), " with E = ", params.dim,
                  ", H / G = ", params.heads / params.kv_heads, ", query_tile ", params.query_tile,
                  " on this device; falling back to the slower kernel that gathers for each query");
  return launch_sparse_attention_forward_generic(params, nullptr, 0, stream);
}

std::tuple<at::Tensor, at::Tensor> sparse_attention_cuda(const at::Tensor& query, const at::Tensor& key,
                                                         const at::Tensor& value, const at::Tensor& indices,
                                                         const at::Tensor& counts, int64_t query_tile,
                                                         std::optional<double> scale) {
  check_sparse_attention(query, key, value, indices, counts, query_tile);
  const c10::cuda::CUDAGuard guard(query.device());
  const int64_t dim = query.size(3);
  const std::optional<ElementType> type = element_type(query);
  if (!type || (dim != 32 && dim != 64 && dim != 128 && dim != 256) || !small_enough(query, key)) {
    TORCH_WARN_ONCE(kOp, ": no kernel for ", query.scalar_type(), " with query ", query.sizes(), " and key ",
                    key.sizes(), "; falling back to the slower reference");
    return sparse_attention_reference(query, key, value, indices, counts, query_tile, scale);
  }
  const at::Tensor out = at::empty(query.sizes(), query.options());
  const at::Tensor lse = at::empty(query.sizes().slice(0, 3), query.options().dtype(at::kFloat));
  if (out.numel() == 0) return {out, lse};
  const at::Tensor q = as_loadable(query), k = as_loadable(key), v = as_loadable(value);
  const at::Tensor rows = indices.contiguous(), row_counts = counts.contiguous();
  SparseAttentionParams params = sizes_of(query, key, indices, query_tile, scale);
  params.type = *type;
  params.query = q.const_data_ptr();
  params.key = k.const_data_ptr();
  params.value = v.const_data_ptr();
  params.indices = rows.const_data_ptr<int32_t>();
  params.counts = row_counts.const_data_ptr<int32_t>();
  params.out = out.mutable_data_ptr();
  params.lse = lse.mutable_data_ptr<float>();
  copy_strides(q, params.query_stride);
  copy_strides(k, params.key_stride);
  copy_strides(v, params.value_stride);
  C10_CUDA_CHECK(launch(params, query));
  return {out, lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, CUDA, library) {
  library.impl("sparse_attention", sparse_attention_cuda);
}

}  // namespace gsa
