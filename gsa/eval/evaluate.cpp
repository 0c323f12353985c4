#include "gsa/eval/evaluate.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "gsa/base/error.h"

namespace gsa {
namespace {

/// `count` query positions spread over the second half of a sequence.
std::vector<int64_t> picture_queries(int64_t count, int64_t length) {
  std::vector<int64_t> queries;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t query = length / 2 + (length - length / 2) * (i + 1) / count - 1;
    if (query >= 0 && (queries.empty() || queries.back() < query)) queries.push_back(query);
  }
  return queries;
}

void add_pictures(const LayerTrace& trace, int64_t count, std::vector<SelectionPicture>& pictures) {
  for (const int64_t query : picture_queries(count, trace.query.size(1))) {
    const at::Tensor attention =
        mean_attention(trace, query, query + 1)[0][0].to(at::kCPU, at::kDouble).contiguous();
    const at::Tensor chosen = selected_keys(trace, query, query + 1)[0][0].to(at::kCPU).contiguous();
    SelectionPicture picture;
    picture.layer = trace.layer;
    picture.query = query;
    for (int64_t key = 0; key <= query; ++key) {
      picture.attention.push_back(attention.data_ptr<double>()[key]);
      if (chosen.data_ptr<bool>()[key]) picture.selected.push_back(key);
    }
    pictures.push_back(std::move(picture));
  }
}

/// The mean over layers of a number that may be absent.
std::optional<double> layer_mean(const std::vector<LayerMetrics>& layers,
                                 std::optional<double> LayerMetrics::*member) {
  double sum = 0;
  int64_t count = 0;
  for (const auto& layer : layers) {
    if (layer.*member) sum += *(layer.*member), ++count;
  }
  return count > 0 ? std::optional<double>(sum / static_cast<double>(count)) : std::nullopt;
}

void summarise(const LossAccumulator& losses, const std::map<int64_t, LayerAccumulator>& layers,
               EvalResult& result) {
  result.sequences = losses.sequences();
  result.tokens = losses.tokens();
  result.loss = losses.loss();
  result.loss_standard_error = losses.standard_error();
  result.perplexity = std::exp(result.loss);
  result.buckets = losses.buckets();
  for (const auto& [index, layer] : layers) result.layers.push_back(layer.metrics());
  result.mean_k = layer_mean(result.layers, &LayerMetrics::mean_k);
  result.recall = layer_mean(result.layers, &LayerMetrics::recall);
  result.captured_mass = layer_mean(result.layers, &LayerMetrics::captured_mass);
  result.captured_mass_without_first = layer_mean(result.layers, &LayerMetrics::captured_mass_without_first);
  result.first_token_attention = layer_mean(result.layers, &LayerMetrics::first_token_attention);
  result.sink_rate = layer_mean(result.layers, &LayerMetrics::sink_rate);
  for (const auto& layer : result.layers) {
    result.max_activation = std::max(result.max_activation, layer.max_activation);
    result.mean_layer_max_activation += layer.max_activation / static_cast<double>(result.layers.size());
  }
}

}  // namespace

EvalResult evaluate(Decoder& model, const std::vector<at::Tensor>& batches, const EvalOptions& options) {
  if (batches.empty()) fail("evaluation: expected at least one batch of sequences, got none");
  const at::NoGradGuard no_gradients;
  const auto start = std::chrono::steady_clock::now();
  EvalResult result;
  result.label = options.label;
  LossAccumulator losses;
  std::map<int64_t, LayerAccumulator> layers;
  ForwardOptions forward;
  forward.mode = options.mode;
  forward.selection = options.selection;
  forward.need_lse = true;
  forward.compute_dtype = options.compute_dtype;
  bool first = true;
  forward.observer = [&](const LayerTrace& trace) {
    layers[trace.layer].add(trace);
    if (first && options.pictures > 0 && trace.indices.defined())
      add_pictures(trace, options.pictures, result.pictures);
  };
  for (const at::Tensor& batch : batches) {
    const at::Tensor tokens = batch.to(model.device());
    const at::Tensor inputs = tokens.slice(1, 0, tokens.size(1) - 1);
    const ForwardResult out = model.forward(inputs, forward);
    losses.add(token_losses(out.hidden, tokens.slice(1, 1),
                            [&](const at::Tensor& hidden) { return model.logits(hidden); }));
    if (first && options.pictures > 0) {
      const at::Tensor sequence = inputs[0].to(at::kCPU).contiguous();
      result.picture_tokens.assign(sequence.data_ptr<int64_t>(),
                                   sequence.data_ptr<int64_t>() + sequence.numel());
    }
    first = false;
  }
  summarise(losses, layers, result);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace gsa
