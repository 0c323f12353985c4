#pragma once
// Attention over selected keys (semantics: line 6 and "Selection").

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace gsa {

/// softmax(scale * query . key) value over the keys that are in the query's row and not in its future.
///
///   query [B,T,H,E], key and value [B,S,G,E] (H % G == 0, S >= T): one floating dtype; query t sits at
///   position t + S - T indices int32 [B,R,K] ascending, padded with -1; counts int32 [B,R]; row r serves
///   queries [r * query_tile, (r + 1) * query_tile) scale: 1/sqrt(E) when absent
///
/// Returns out [B,T,H,E] in the dtype of query and lse [B,T,H] in fp32 (fp64 for fp64): the natural
/// log-sum-exp of the scaled logits. A query without keys has out 0 and lse -inf. Keys outside a query's row
/// never matter, not even when they are NaN. Differentiable in query, key and value (through out and lse).
/// Memory O(block * S) beside inputs and outputs. Throws ValueError / TypeError.
std::tuple<at::Tensor, at::Tensor> sparse_attention(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value, const at::Tensor& indices,
                                                    const at::Tensor& counts, int64_t query_tile = 1,
                                                    std::optional<double> scale = std::nullopt);

/// Gradients of query, key and value. `grad_lse` may be absent.
std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
    const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile, std::optional<double> scale);

/// Checks query, key and value as sparse_attention takes them; `op` is named in errors.
void check_attention_inputs(const char* op, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value);

/// The argument checks of sparse_attention, for its kernels.
void check_sparse_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile);

/// The op on every device without a kernel of its own: kernels fall back to it for shapes they do not take.
std::tuple<at::Tensor, at::Tensor> sparse_attention_reference(const at::Tensor& query, const at::Tensor& key,
                                                              const at::Tensor& value,
                                                              const at::Tensor& indices,
                                                              const at::Tensor& counts, int64_t query_tile,
                                                              std::optional<double> scale);

}  // namespace gsa
