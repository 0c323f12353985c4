#include "gsa/ops/indexer/index_select_problem.h"

#include "gsa/ops/indexer/activation.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_select";

IndexActivation kernel_activation(Activation activation) {
  switch (activation) {
    case Activation::kSigmoid:
      return IndexActivation::kSigmoid;
    case Activation::kHardSigmoid:
      return IndexActivation::kHardSigmoid;
    default:
      return IndexActivation::kRelu;
  }
}

SelectBudget kernel_budget(BudgetRule rule) {
  switch (rule) {
    case BudgetRule::kFixed:
      return SelectBudget::kFixed;
    case BudgetRule::kInverse:
      return SelectBudget::kInverse;
    case BudgetRule::kAsPrinted:
      return SelectBudget::kAsPrinted;
    case BudgetRule::kEntropy:
      return SelectBudget::kEntropy;
    case BudgetRule::kMaxScore:
      return SelectBudget::kMaxScore;
    default:
      return SelectBudget::kRandom;
  }
}

}  // namespace

void set_problem(IndexSelectParams& params, const at::Tensor& index_query, const at::Tensor& index_key,
                 const IndexSelectOptions& options) {
  params.batch = index_query.size(0);
  params.queries = index_query.size(1);
  params.keys = index_key.size(1);
  params.heads = static_cast<int>(index_query.size(2));
  params.dim = static_cast<int>(index_query.size(3));
  params.k_base = static_cast<int>(options.k_base);
  params.k_min = static_cast<int>(options.k_min);
  params.k_max = static_cast<int>(options.k_max);
  params.capacity = static_cast<int>(selection_capacity(options));
  params.keep_first = static_cast<int>(options.keep_first);
  params.keep_recent = static_cast<int>(options.keep_recent);
  params.query_tile = static_cast<int>(options.query_tile);
  params.tile_factor = options.tile_factor;
  params.activation = kernel_activation(parse_activation(kOp, options.activation));
  params.budget = kernel_budget(parse_budget_rule(kOp, options.budget));
}

at::Tensor as_floats(const std::optional<at::Tensor>& tensor, const at::Tensor& like) {
  return tensor ? tensor->to(like.options().dtype(at::kFloat)).contiguous() : at::Tensor();
}

const float* floats_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

}  // namespace gsa
