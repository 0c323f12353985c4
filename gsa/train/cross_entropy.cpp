#include "gsa/train/cross_entropy.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "gsa/base/check.h"

namespace gsa {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "chunked_cross_entropy";

/// Rows of a chunk: on a CPU the logits stay in its caches, on a GPU the chunk fills it; never so few that
/// reading the weights for every chunk would cost more than the products.
int64_t rows_that_suit(const at::Device& device, int64_t vocabulary) {
  const int64_t elements = device.is_cpu() ? int64_t{1} << 22 : int64_t{1} << 27;
  return std::max<int64_t>(256, elements / std::max<int64_t>(1, vocabulary));
}

struct Pass {
  at::Tensor loss, hidden_gradient, weight_gradient;
};

/// Loss and both gradients (for an output gradient of one), a chunk of rows at a time.
Pass run(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, at::ScalarType dtype,
         int64_t rows, bool gradients) {
  const auto sum_dtype = hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor low_weight = weight.to(dtype);
  // Each row's share of the mean. Asking whether there is any would make a GPU wait; there the mean of
  // nothing is NaN.
  at::Tensor shares = targets.ne(kIgnoredTarget).to(sum_dtype);
  TORCH_CHECK_VALUE(!targets.is_cpu() || shares.any().item<bool>(), kOp,
                    ": targets expected at least one that counts, got none");
  shares.div_(shares.sum());
  Pass pass{at::zeros({}, hidden.options().dtype(sum_dtype)), {}, {}};
  if (gradients) {
    pass.hidden_gradient = at::empty_like(hidden);
    pass.weight_gradient = at::zeros_like(weight, weight.options().dtype(sum_dtype));
  }
  for (int64_t begin = 0; begin < hidden.size(0); begin += rows) {
    const int64_t length = std::min(rows, hidden.size(0) - begin);
    const at::Tensor chunk = hidden.narrow(0, begin, length).to(dtype);
    const at::Tensor share = shares.narrow(0, begin, length).unsqueeze(1);
    const at::Tensor target = targets.narrow(0, begin, length).clamp_min(0).unsqueeze(1);
    at::Tensor log_p = at::log_softmax(at::mm(chunk, low_weight.t()), 1, sum_dtype);
    pass.loss.sub_(log_p.gather(1, target).mul(share).sum());
    if (!gradients) continue;
    at::Tensor gradient = log_p.exp_();
    gradient.scatter_(1, target, gradient.gather(1, target).sub_(1));
    gradient = gradient.mul_(share).to(dtype);
    pass.hidden_gradient.narrow(0, begin, length).copy_(at::mm(gradient, low_weight));
    if (dtype == sum_dtype) {
      pass.weight_gradient.addmm_(gradient.t(), chunk);
    } else {
      pass.weight_gradient.add_(at::mm(gradient.t(), chunk));
    }
  }
  return pass;
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, at::ScalarType dtype, int64_t rows, bool gradients) {
    Pass pass = run(hidden, weight, targets, dtype, rows, gradients);
    if (gradients)
      context->save_for_backward({pass.hidden_gradient, pass.weight_gradient.to(weight.scalar_type())});
    return pass.loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& outputs) {
    const auto saved = context->get_saved_variables();
    const auto scaled = [&](size_t i) {
      return context->needs_input_grad(i) ? saved[i].mul(outputs[0].to(saved[i].scalar_type()))
                                          : at::Tensor();
    };
    return {scaled(0), scaled(1), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor chunked_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                 const at::Tensor& targets, std::optional<at::ScalarType> product_dtype,
                                 int64_t chunk_rows) {
  check_shape(kOp, "hidden", hidden, {kAny, kAny}, "[N,D]");
  check_floating(kOp, "hidden", hidden);
  check_shape(kOp, "weight", weight, {kAny, hidden.size(1)}, "[V,D]");
  check_floating(kOp, "weight", weight);
  check_same_device(kOp, "weight", weight, "hidden", hidden);
  check_shape(kOp, "targets", targets, {hidden.size(0)}, "[N]");
  check_dtype(kOp, "targets", targets, at::kLong);
  const int64_t rows = chunk_rows > 0 ? chunk_rows : rows_that_suit(hidden.device(), weight.size(0));
  const bool gradients = c10::GradMode::is_enabled() && (hidden.requires_grad() || weight.requires_grad());
  return CrossEntropy::apply(hidden, weight, targets, product_dtype.value_or(hidden.scalar_type()), rows,
                             gradients);
}

}  // namespace gsa
