#include "gsa/testing/selection_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

namespace gsa::testing {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

std::vector<double> row_values(const at::Tensor& scores, int64_t t) {
  const at::Tensor row = scores[t].to(at::kCPU, at::kDouble).contiguous();
  return {row.data_ptr<double>(), row.data_ptr<double>() + row.numel()};
}

void keep_ends(std::set<int64_t>& row, const IndexSelectOptions& options, int64_t end) {
  for (int64_t s = 0; s < std::min(options.keep_first, end); ++s) row.insert(s);
  for (int64_t s = std::max<int64_t>(0, end - options.keep_recent); s < end; ++s) row.insert(s);
}

std::vector<int64_t> single_row(std::vector<double> scores, int64_t budget, int64_t position,
                                const IndexSelectOptions& options) {
  std::set<int64_t> row;
  keep_ends(row, options, position + 1);
  scores.resize(position + 1);
  for (int64_t s : row) scores[s] = kMinusInfinity;
  for (int64_t s : oracle_topk(scores, budget - static_cast<int64_t>(row.size()))) row.insert(s);
  return {row.begin(), row.end()};
}

std::vector<int64_t> shared_row(const at::Tensor& scores, const std::vector<int64_t>& budget, int64_t begin,
                                int64_t end, const IndexSelectOptions& options) {
  const int64_t start = begin + scores.size(1) - scores.size(0);
  std::set<int64_t> row;
  keep_ends(row, options, start);
  const std::vector<double> best = oracle_margins(scores, budget, begin, end, options);
  const int64_t largest_budget = *std::max_element(budget.begin() + begin, budget.begin() + end);
  const int64_t shared = std::llrint(options.tile_factor * static_cast<double>(largest_budget));
  for (int64_t s : oracle_topk(best, shared - static_cast<int64_t>(row.size()))) row.insert(s);
  for (int64_t t = begin; t < end; ++t) row.insert(start + t - begin);
  return {row.begin(), row.end()};
}

}  // namespace

std::vector<int64_t> oracle_topk(const std::vector<double>& scores, int64_t k) {
  std::vector<int64_t> order;
  for (size_t s = 0; s < scores.size(); ++s) {
    if (!std::isnan(scores[s]) && scores[s] != kMinusInfinity) order.push_back(static_cast<int64_t>(s));
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  order.resize(std::clamp<int64_t>(k, 0, static_cast<int64_t>(order.size())));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<double> oracle_margins(const at::Tensor& scores, const std::vector<int64_t>& budget,
                                   int64_t begin, int64_t end, const IndexSelectOptions& options) {
  const int64_t start = begin + scores.size(1) - scores.size(0);
  std::set<int64_t> kept;
  keep_ends(kept, options, start);
  std::vector<double> best(start, kMinusInfinity);
  for (int64_t t = begin; t < end; ++t) {
    std::vector<double> candidates = row_values(scores, t);
    candidates.resize(start);
    for (int64_t s : kept) candidates[s] = kMinusInfinity;
    const auto own = oracle_topk(candidates, budget[t]);
    if (own.empty()) continue;
    double threshold = std::numeric_limits<double>::infinity();
    for (int64_t s : own) threshold = std::min(threshold, candidates[s]);
    for (int64_t s = 0; s < start; ++s) {
      if (!std::isnan(candidates[s])) best[s] = std::max(best[s], candidates[s] - threshold);
    }
  }
  return best;
}

std::vector<std::vector<int64_t>> oracle_rows(const at::Tensor& scores, const std::vector<int64_t>& budget,
                                              const IndexSelectOptions& options) {
  const int64_t queries = scores.size(0), offset = scores.size(1) - queries;
  std::vector<std::vector<int64_t>> rows;
  for (int64_t begin = 0; begin < queries; begin += options.query_tile) {
    if (options.query_tile == 1) {
      rows.push_back(single_row(row_values(scores, begin), budget[begin], begin + offset, options));
    } else {
      rows.push_back(
          shared_row(scores, budget, begin, std::min(begin + options.query_tile, queries), options));
    }
  }
  return rows;
}

int64_t oracle_budget(float statistic, float mean, int64_t position, const IndexSelectOptions& options) {
  const auto base = static_cast<float>(options.k_base);
  float wanted = base;
  if (options.budget == "inverse" || options.budget == "max_score") {
    wanted = statistic <= 0 ? static_cast<float>(options.k_max) : std::nearbyint(mean / statistic * base);
  } else if (options.budget != "fixed") {
    wanted = std::nearbyint(statistic / mean * base);
  }
  if (std::isnan(wanted)) wanted = base;
  wanted = std::clamp(wanted, static_cast<float>(options.k_min), static_cast<float>(options.k_max));
  return std::min(static_cast<int64_t>(wanted), position + 1);
}

std::vector<double> oracle_variance(const at::Tensor& scores) {
  std::vector<double> variances;
  for (int64_t t = 0; t < scores.size(0); ++t) {
    std::vector<double> values = row_values(scores, t);
    values.resize(t + 1 + scores.size(1) - scores.size(0));
    std::erase_if(values, [](double value) { return std::isnan(value); });
    const double count = std::max<double>(1, static_cast<double>(values.size()));
    const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
    double sum = 0;
    for (double value : values) sum += (value - mean) * (value - mean);
    variances.push_back(sum / count);
  }
  return variances;
}

std::vector<int64_t> row_of(const at::Tensor& indices, const at::Tensor& counts, int64_t b, int64_t r) {
  const at::Tensor row = indices[b][r].to(at::kCPU, at::kLong).contiguous();
  const int64_t count = counts[b][r].item<int64_t>();
  return {row.data_ptr<int64_t>(), row.data_ptr<int64_t>() + count};
}

}  // namespace gsa::testing
