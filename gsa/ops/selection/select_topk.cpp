#include "gsa/ops/selection/select_topk.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gsa/base/check.h"

namespace gsa {
namespace {

constexpr const char* kOp = "select_topk";

std::tuple<at::Tensor, at::Tensor> meta(const at::Tensor& scores, const at::Tensor& budget, int64_t max_k) {
  check_select_topk(scores, budget, max_k);
  const auto options = scores.options().dtype(at::kInt);
  return {at::empty({scores.size(0), scores.size(1), max_k}, options),
          at::empty({scores.size(0), scores.size(1)}, options)};
}

}  // namespace

void check_select_topk(const at::Tensor& scores, const at::Tensor& budget, int64_t max_k) {
  check_shape(kOp, "scores", scores, {kAny, kAny, kAny}, "[B,T,S]");
  check_floating(kOp, "scores", scores);
  check_shape(kOp, "budget", budget, {scores.size(0), scores.size(1)}, "[B,T]");
  check_dtype(kOp, "budget", budget, at::kInt);
  check_same_device(kOp, "budget", budget, "scores", scores);
  TORCH_CHECK_VALUE(max_k >= 1, kOp, ": max_k expected a positive number, got ", max_k);
}

std::tuple<at::Tensor, at::Tensor> select_topk(const at::Tensor& scores, const at::Tensor& budget,
                                               int64_t max_k) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gsa::select_topk", "").typed<decltype(select_topk)>();
  return op.call(scores, budget, max_k);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def("select_topk(Tensor scores, Tensor budget, int max_k) -> (Tensor indices, Tensor counts)");
}

TORCH_LIBRARY_IMPL(gsa, Meta, library) {
  library.impl("select_topk", meta);
}

}  // namespace gsa
