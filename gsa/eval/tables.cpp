// Results as text tables.

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "gsa/eval/evaluate.h"

namespace gsa {
namespace {

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string number(const char* format, const std::optional<double>& value) {
  return value ? number(format, *value) : "-";
}

/// Columns as wide as their widest cell; the first one is aligned to the left, the others to the right.
std::string aligned(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      if (i > 0) text += "  ";
      text += i == 0 ? row[i] + padding : padding + row[i];
    }
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

}  // namespace

std::string result_table(const std::vector<EvalResult>& results) {
  std::vector<std::vector<std::string>> rows{{"", "perplexity", "loss", "+-", "mean k", "recall", "mass",
                                              "mass w/o 0", "first token", "sink rate", "max act.",
                                              "layer max"}};
  for (const auto& r : results) {
    rows.push_back({r.label, number("%.3f", r.perplexity), number("%.4f", r.loss),
                    number("%.4f", r.loss_standard_error), number("%.1f", r.mean_k), number("%.3f", r.recall),
                    number("%.3f", r.captured_mass), number("%.3f", r.captured_mass_without_first),
                    number("%.3f", r.first_token_attention), number("%.3f", r.sink_rate),
                    number("%.1f", r.max_activation), number("%.1f", r.mean_layer_max_activation)});
  }
  return aligned(rows);
}

std::string bucket_table(const std::vector<EvalResult>& results) {
  std::vector<std::vector<std::string>> rows{{"perplexity at positions"}};
  for (const auto& result : results) rows[0].push_back(result.label);
  const size_t buckets = results.empty() ? 0 : results.front().buckets.size();
  for (size_t i = 0; i < buckets; ++i) {
    const auto& bucket = results.front().buckets[i];
    rows.push_back({std::to_string(bucket.begin) + " - " + std::to_string(bucket.end - 1)});
    for (const auto& result : results) {
      rows.back().push_back(i < result.buckets.size() ? number("%.3f", result.buckets[i].perplexity) : "-");
    }
  }
  return aligned(rows);
}

}  // namespace gsa
