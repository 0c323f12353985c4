#include "gsa/train/optimizer.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "gsa/base/error.h"
#include "gsa/models/decoder.h"

namespace gsa {

std::vector<ParameterGroup> parameter_groups(const NamedTensors& parameters, double weight_decay,
                                             double indexer_factor) {
  std::vector<ParameterGroup> groups = {{"model", {}, 1.0, weight_decay},
                                        {"model_no_decay", {}, 1.0, 0.0},
                                        {"indexer", {}, indexer_factor, weight_decay},
                                        {"indexer_no_decay", {}, indexer_factor, 0.0}};
  for (const auto& [name, parameter] : parameters) {
    const size_t group = (is_indexer_parameter(name) ? 2 : 0) + (parameter.dim() < 2 ? 1 : 0);
    groups[group].parameters.emplace_back(name, parameter);
  }
  std::erase_if(groups, [](const ParameterGroup& group) { return group.parameters.empty(); });
  return groups;
}

double clip_gradients(const NamedTensors& parameters, double max_norm) {
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return 0.0;
  const double norm = at::stack(at::_foreach_norm(gradients, 2.0)).to(at::kDouble).norm().item<double>();
  if (max_norm > 0 && norm > max_norm) {
    at::_foreach_mul_(gradients, max_norm / (norm + 1e-6));
  }
  return norm;
}

AdamW::AdamW(std::vector<ParameterGroup> groups, AdamWOptions options)
    : groups_(std::move(groups)), options_(options) {
  for (const auto& group : groups_) {
    auto& moments = moments_.emplace_back();
    for (const auto& [name, parameter] : group.parameters) {
      const at::Tensor values = parameter.detach();
      moments.push_back({at::zeros_like(values), at::zeros_like(values),
                         at::zeros({}, values.options().dtype(at::kFloat))});
    }
  }
}

void AdamW::step(double learning_rate) {
  const c10::NoGradGuard no_grad;
  for (size_t g = 0; g < groups_.size(); ++g) {
    std::vector<at::Tensor> values, gradients, averages, squares, steps;
    for (size_t i = 0; i < moments_[g].size(); ++i) {
      const at::Tensor& parameter = groups_[g].parameters[i].second;
      if (!parameter.grad().defined()) continue;
      values.push_back(parameter);
      gradients.push_back(parameter.grad());
      averages.push_back(moments_[g][i].average);
      squares.push_back(moments_[g][i].square);
      steps.push_back(moments_[g][i].step);
    }
    if (values.empty()) continue;
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(values, gradients, averages, squares, {}, steps, learning_rate * groups_[g].rate_factor,
                      options_.beta1, options_.beta2, groups_[g].weight_decay, options_.epsilon,
                      /*amsgrad=*/false, /*maximize=*/false);
  }
}

void AdamW::zero_gradients() {
  for (auto& group : groups_) {
    for (auto& [name, parameter] : group.parameters) parameter.mutable_grad() = at::Tensor();
  }
}

NamedTensors AdamW::state() const {
  NamedTensors state;
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (size_t i = 0; i < moments_[g].size(); ++i) {
      const std::string& name = groups_[g].parameters[i].first;
      state.emplace_back(name + ".exp_avg", moments_[g][i].average);
      state.emplace_back(name + ".exp_avg_sq", moments_[g][i].square);
      state.emplace_back(name + ".step", moments_[g][i].step);
    }
  }
  return state;
}

void AdamW::load_state(const std::function<at::Tensor(const std::string&)>& find) {
  const c10::NoGradGuard no_grad;
  for (auto& [name, tensor] : state()) {
    const at::Tensor saved = find(name);
    if (saved.sizes() != tensor.sizes())
      fail("optimizer state: '", name, "' expected shape ", tensor.sizes(), ", got ", saved.sizes());
    at::Tensor(tensor).copy_(saved);
  }
}

}  // namespace gsa
