#pragma once
// Evaluation of a model on token sequences: perplexity, attention, selection. One forward gives all of it.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gsa/eval/attention_metrics.h"
#include "gsa/eval/perplexity.h"
#include "gsa/models/decoder.h"

namespace gsa {

struct EvalOptions {
  std::string label;  // names the row in tables
  AttentionMode mode = AttentionMode::sparse;
  SelectionOverride selection;  // the indexer, or a control at equal k
  int64_t pictures = 0;  // queries of the first sequence whose selection is kept, spread over its second half
  std::optional<at::ScalarType> compute_dtype;
};

/// What one query selected in one layer, for a picture.
struct SelectionPicture {
  int64_t layer = 0;
  int64_t query = 0;
  std::vector<int64_t> selected;  // positions, ascending
  std::vector<double> attention;  // dense attention of the query, mean over heads, on positions 0 .. query
  template <class Visitor>
  void fields(Visitor&& field) {
    field("layer", layer);
    field("query", query);
    field("selected", selected);
    field("attention", attention);
  }
};

/// One row of the table. Numbers over layers are means, but max_activation, the largest anywhere. Absent: not
/// defined here.
struct EvalResult {
  std::string label;
  int64_t sequences = 0;
  int64_t tokens = 0;
  double loss = 0;                 // nats a token
  double loss_standard_error = 0;  // over sequences
  double perplexity = 1;
  std::vector<PositionBucket> buckets;
  std::optional<double> mean_k;
  std::optional<double> recall;
  std::optional<double> captured_mass;
  std::optional<double> captured_mass_without_first;
  std::optional<double> first_token_attention;
  std::optional<double> sink_rate;
  double max_activation = 0;
  double mean_layer_max_activation = 0;
  double seconds = 0;
  std::vector<LayerMetrics> layers;
  std::vector<int64_t> picture_tokens;  // the first sequence, when pictures were asked for
  std::vector<SelectionPicture> pictures;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("label", label);
    field("sequences", sequences);
    field("tokens", tokens);
    field("loss", loss);
    field("loss_standard_error", loss_standard_error);
    field("perplexity", perplexity);
    field("buckets", buckets);
    field("mean_k", mean_k);
    field("recall", recall);
    field("captured_mass", captured_mass);
    field("captured_mass_without_first", captured_mass_without_first);
    field("first_token_attention", first_token_attention);
    field("sink_rate", sink_rate);
    field("max_activation", max_activation);
    field("mean_layer_max_activation", mean_layer_max_activation);
    field("seconds", seconds);
    field("layers", layers);
    field("picture_tokens", picture_tokens);
    field("pictures", pictures);
  }
};

/// Evaluates `model` on batches of int64 [B, L+1] tokens (inputs and next tokens), all of one length. Throws
/// Error when there is no batch.
EvalResult evaluate(Decoder& model, const std::vector<at::Tensor>& batches, const EvalOptions& options);

/// The results as a text table: one line per result, absent numbers as "-".
std::string result_table(const std::vector<EvalResult>& results);
/// Perplexity by position: one line per bucket, one column per result.
std::string bucket_table(const std::vector<EvalResult>& results);

}  // namespace gsa
