// The torch side of rotary_append's CUDA kernel.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "gsa/ops/element_type.h"
#include "gsa/ops/rotary/rotary_problem.h"
#include "gsa/ops/rotary_append/rotary_append.h"
#include "gsa/ops/rotary_append/rotary_append_kernel.h"
#include "gsa/ops/rotary_append/rotary_append_problem.h"

namespace gsa {
namespace {

bool is_fp32(const at::Tensor& table) {
  return !table.defined() || table.scalar_type() == at::kFloat;
}

bool has_rows(const at::Tensor& x) {
  return !x.defined() || x.stride(-1) == 1;
}

at::Tensor with_rows(const at::Tensor& x) {
  return has_rows(x) ? x : x.contiguous();
}

at::Tensor packed(const at::Tensor& table) {
  return table.defined() ? table.contiguous() : table;
}

void rotary_append_cuda(const NewTokens& given, const CachePlaces& places) {
  check_rotary_append(given, places);
  const bool writable = has_rows(given.query) && has_rows(given.index_query) && has_rows(places.key) &&
                        has_rows(places.value) && has_rows(places.index_key);
  if (!element_type(given.key) || !is_fp32(given.cos) || !is_fp32(given.index_cos) || !writable)
    return rotary_append_reference(given, places);
  const c10::cuda::CUDAGuard device(given.key.device());
  NewTokens tokens = given;
  for (at::Tensor* x : {&tokens.key, &tokens.value, &tokens.value_gate, &tokens.index_key})
    *x = with_rows(*x);
  for (at::Tensor* table : {&tokens.cos, &tokens.sin, &tokens.index_cos, &tokens.index_sin})
    *table = packed(*table);
  C10_CUDA_CHECK(
      launch_rotary_append(rotary_append_params(tokens, places), c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, CUDA, library) {
  library.impl("rotary_append", rotary_append_op<rotary_append_cuda>);
}

}  // namespace gsa
