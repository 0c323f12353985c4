#include "gsa/models/activation_checkpoint.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace gsa {
namespace {

struct LayerHolder : torch::CustomClassHolder {
  explicit LayerHolder(CheckpointedLayer held) : layer(std::move(held)) {}
  CheckpointedLayer layer;
};

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  // `anchor` makes the outputs differentiable when x is not (a frozen model whose indexer trains).
  static Tensors forward(Context* context, const at::Tensor& x, const at::Tensor& anchor,
                         CheckpointedLayer layer) {
    context->save_for_backward({x});
    Tensors outputs = layer(x.detach(), /*recomputing=*/false);
    context->saved_data["layer"] =
        c10::IValue::make_capsule(c10::make_intrusive<LayerHolder>(std::move(layer)));
    context->saved_data["x_trains"] = x.requires_grad();
    return outputs;
  }

  static Tensors backward(Context* context, Tensors gradients) {
    const auto holder =
        c10::static_intrusive_pointer_cast<LayerHolder>(context->saved_data["layer"].toCapsule());
    const at::Tensor x = context->get_saved_variables()[0].detach();
    x.requires_grad_(context->saved_data["x_trains"].toBool());
    const at::AutoGradMode with_graph(true);
    const Tensors outputs = holder->layer(x, /*recomputing=*/true);
    Tensors roots, root_gradients;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].requires_grad() || !gradients[i].defined()) continue;
      roots.push_back(outputs[i]);
      root_gradients.push_back(gradients[i]);
    }
    if (!roots.empty()) torch::autograd::backward(roots, root_gradients);
    return {x.grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

std::vector<at::Tensor> checkpoint_layer(CheckpointedLayer layer, const at::Tensor& x) {
  if (!at::GradMode::is_enabled()) return layer(x, /*recomputing=*/false);
  const at::Tensor anchor = at::zeros({}, at::kFloat).requires_grad_(true);
  return Checkpoint::apply(x, anchor, std::move(layer));
}

}  // namespace gsa
