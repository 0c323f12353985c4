#include "gsa/testing/attention_bench.h"

#include <ATen/Context.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/InferenceMode.h>

#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "gsa/ops/indexer/index_select.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"
#include "gsa/ops/sparse_decode/sparse_decode.h"

namespace gsa::testing {
namespace {

/// The backends of scaled_dot_product_attention that are worth trying.
struct Backend {
  const char* name;
  void (at::Context::*enable)(bool);
};
constexpr Backend kBackends[] = {{"cudnn", &at::Context::setSDPUseCuDNN},
                                 {"flash", &at::Context::setSDPUseFlash},
                                 {"efficient", &at::Context::setSDPUseMemEfficient}};

void enable_only(const char* name) {
  for (const Backend& backend : kBackends)
    (at::globalContext().*backend.enable)(std::string_view(backend.name) == name);
  at::globalContext().setSDPUseMath(false);
}

void enable_all() {
  for (const Backend& backend : kBackends) (at::globalContext().*backend.enable)(true);
  at::globalContext().setSDPUseMath(true);
}

struct Dense {
  Timing timing;
  std::string backend = "default";
  double peak_mib = 0;
  bool extrapolated = false;
};

/// One phase at one length: its inputs and what dense attention takes.
struct Setting {
  std::string phase, index_keys = "compute";
  AttentionShape shape;
  AttentionInputs inputs;
  std::optional<Overlap> overlap;
  Dense dense;
};

class Bench {
 public:
  Bench(const AttentionBenchOptions& options, const std::function<void(const Json&)>& report)
      : options_(options), report_(report) {}

  void run() {
    const c10::InferenceMode no_gradients;
    for (const std::string& phase : options_.phases)
      for (const int64_t length : options_.lengths)
        if (phase == "prefill") {
          measure(prepare(phase, 1, length, length));
        } else if (phase == "chunk") {
          for (const int64_t chunk : options_.chunks)
            if (chunk < length) measure(prepare(phase, 1, chunk, length));
        } else {
          for (const int64_t batch : options_.batches) measure(prepare(phase, batch, 1, length));
        }
  }

 private:
  Setting prepare(const std::string& phase, int64_t batch, int64_t queries, int64_t keys) {
    Setting setting;
    setting.phase = phase;
    setting.shape = options_.shape;
    setting.shape.batch = batch;
    setting.shape.queries = queries;
    setting.shape.keys = keys;
    const auto tensors = at::TensorOptions().dtype(options_.dtype).device(options_.device);
    const bool tiles = queries >= 64 && keys > options_.k;  // shorter than that, every query takes every key
    QueryProcess process;
    if (tiles && options_.text_overlap)
      process = fit_overlap(setting.shape, options_.overlap, options_.k, tensors);
    setting.inputs = make_attention_inputs(setting.shape, process, tensors, 0);
    if (tiles) setting.overlap = measure_overlap(setting.inputs, options_.k);
    return setting;
  }

  void measure(Setting setting) {
    setting.dense = measure_dense(setting);
    Json row = row_of(setting, "dense", setting.dense.timing, setting.dense.peak_mib, dense_work(setting));
    row["backend"] = setting.dense.backend;
    if (setting.dense.extrapolated) row["extrapolated"] = true;
    report_(row);
    if (setting.phase != "decode") return measure_selections(setting);
    const at::Tensor computed = setting.inputs.index_key;
    for (const std::string& keys : options_.index_keys) {
      setting.index_keys = keys;
      setting.inputs.index_key = keys == "compute" ? computed : computed.to(at::kFloat8_e4m3fn);
      measure_selections(setting);
    }
  }

  void measure_selections(const Setting& setting) {
    for (const std::string& activation : options_.activations) {
      measure_sparse(setting, "exact", activation, 1, false);
      if (setting.phase != "decode") measure_sparse(setting, "shared", activation, 64, false);
      if (setting.shape.queries * setting.shape.keys <= options_.reference_limit * options_.reference_limit)
        measure_sparse(setting, "reference", activation, 1, true);
    }
  }

  /// Chunks without a mask: no backend aligns one at the last key, and few pairs are too many.
  at::Tensor attend_densely(const Setting& setting) const {
    const AttentionInputs& in = setting.inputs;
    return at::scaled_dot_product_attention(in.query.transpose(1, 2), in.key.transpose(1, 2),
                                            in.value.transpose(1, 2), std::nullopt, 0.0,
                                            setting.phase == "prefill", std::nullopt,
                                            /*enable_gqa=*/true);
  }

  Dense measure_dense(const Setting& setting) {
    const int64_t length = setting.shape.keys;
    if (setting.phase == "prefill" && length > options_.dense_limit && longest_dense_.first > 0) {
      Dense dense = longest_dense_.second;
      const double factor =
          std::pow(static_cast<double>(length) / static_cast<double>(longest_dense_.first), 2);
      for (double* ms : {&dense.timing.median_ms, &dense.timing.min_ms, &dense.timing.max_ms}) *ms *= factor;
      dense.extrapolated = true;
      return dense;
    }
    Dense best;
    auto consider = [&](const char* backend) {
      const Timing timing = time_call(options_.device, options_.timing, [&] { attend_densely(setting); });
      if (best.timing.iterations == 0 || timing.median_ms < best.timing.median_ms) {
        best.timing = timing;
        best.backend = backend;
        best.peak_mib = peak_memory_mib(options_.device, [&] { attend_densely(setting); });
      }
    };
    if (!options_.device.is_cpu()) {
      for (const Backend& backend : kBackends) {
        enable_only(backend.name);
        try {
          consider(backend.name);
        } catch (const c10::Error&) {  // this backend does not take these shapes
        }
      }
      enable_all();
    }
    if (best.timing.iterations == 0) consider("default");
    if (setting.phase == "prefill") longest_dense_ = {length, best};
    return best;
  }

  IndexSelectOptions select_options(const std::string& activation, int64_t tile) const {
    IndexSelectOptions select;
    select.k_base = select.k_min = select.k_max = options_.k;
    select.budget = "fixed";
    select.activation = activation;
    select.query_tile = tile;
    select.keep_first = options_.keep_first;
    select.keep_recent = options_.keep_recent;
    return select;
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> select(const Setting& setting,
                                                               const IndexSelectOptions& select,
                                                               bool reference) {
    const AttentionInputs& in = setting.inputs;
    if (!reference)
      return index_select(in.index_query, in.index_key, in.head_weight, std::nullopt, std::nullopt, select);
    return index_select_reference(in.index_query, in.index_key, in.head_weight, std::nullopt, std::nullopt,
                                  select.k_base, select.k_min, select.k_max, select.budget, select.activation,
                                  select.query_tile, select.keep_first, select.keep_recent,
                                  select.tile_factor, std::nullopt);
  }

  void measure_sparse(const Setting& setting, const char* name, const std::string& activation, int64_t tile,
                      bool reference) {
    const AttentionInputs& in = setting.inputs;
    const double estimate = estimate_ms(setting, name, activation);
    if (estimate > 1000 * options_.timing.budget_seconds) {
      Json row = row_of(setting, name, {}, 0, {});
      for (const char* field :
           {"ms_median", "ms_min", "ms_max", "speedup_vs_dense", "tflops", "gbytes_per_s", "peak_memory_mib"})
        row[field] = nullptr;
      row["activation"] = activation;
      row["index_keys"] = setting.index_keys;
      row["skipped_at_ms"] = estimate;
      report_(row);
      return;
    }
    at::Tensor indices, counts;
    const IndexSelectOptions options = select_options(activation, tile);
    auto selection = [&] { std::tie(indices, counts, std::ignore) = select(setting, options, reference); };
    auto attention = [&] {
      if (reference)
        sparse_attention_reference(in.query, in.key, in.value, indices, counts, tile, std::nullopt);
      else
        sparse_attention(in.query, in.key, in.value, indices, counts, tile);
    };
    auto both = [&] {
      if (setting.phase == "decode" && !reference) {  // as layers do
        counts = sparse_decode(in.query, in.key, in.value, in.index_query, in.index_key, in.head_weight,
                               std::nullopt, std::nullopt, options)
                     .counts;
        return;
      }
      selection();
      attention();
    };
    const Timing whole = time_call(options_.device, options_.timing, both);
    known_[{setting.phase, name, activation, setting.index_keys}] = {setting.shape, whole.median_ms};
    const Timing select_time = time_call(options_.device, options_.timing, selection);
    const Timing attend_time = time_call(options_.device, options_.timing, attention);
    Json row = row_of(setting, name, whole, peak_memory_mib(options_.device, both),
                      sparse_work(setting, counts, tile));
    row["activation"] = activation;
    row["index_keys"] = setting.index_keys;
    row["parts"] = {{"selection", select_time.median_ms}, {"attention", attend_time.median_ms}};
    if (setting.overlap)
      row["overlap"] = {{"union16", setting.overlap->union16}, {"union64", setting.overlap->union64}};
    report_(row);
  }

  /// What a call will take, from the last smaller one of its kind; 0 when there was none.
  double estimate_ms(const Setting& setting, const std::string& name, const std::string& activation) const {
    const auto known = known_.find({setting.phase, name, activation, setting.index_keys});
    if (known == known_.end()) return 0;
    const auto& [shape, ms] = known->second;
    auto pairs = [](const AttentionShape& s) {
      return static_cast<double>(s.batch * s.queries) * static_cast<double>(s.keys);
    };
    return ms * pairs(setting.shape) / pairs(shape);
  }

  /// Floating-point operations the result needs, and bytes when everything is read and written once.
  struct Work {
    double operations, bytes;
  };

  double element() const { return static_cast<double>(c10::elementSize(options_.dtype)); }

  /// Pairs of a query and a key it may see.
  static double causal_pairs(const AttentionShape& s) {
    const auto queries = static_cast<double>(s.queries), keys = static_cast<double>(s.keys);
    return static_cast<double>(s.batch) * (queries * keys - queries * (queries - 1) / 2);
  }

  Work dense_work(const Setting& setting) const {
    const AttentionShape& s = setting.shape;
    const double heads = static_cast<double>(s.heads * s.dim), groups = static_cast<double>(s.groups * s.dim);
    const auto batch = static_cast<double>(s.batch);
    return {4 * heads * causal_pairs(s),
            element() * batch *
                (2 * heads * static_cast<double>(s.queries) + 2 * groups * static_cast<double>(s.keys))};
  }

  /// Scoring reads every index key once; attention reads a selected key once per row, at most each key once.
  Work sparse_work(const Setting& setting, const at::Tensor& counts, int64_t tile) const {
    const AttentionShape& s = setting.shape;
    const double index = static_cast<double>(s.index_heads * s.index_dim),
                 batch = static_cast<double>(s.batch);
    const double heads = static_cast<double>(s.heads * s.dim), groups = static_cast<double>(s.groups * s.dim);
    const double rows = counts.sum().item<double>();
    const double gathered = std::min(rows, batch * static_cast<double>(s.keys));
    const double attended = std::min(rows * static_cast<double>(tile), causal_pairs(s));
    const auto key_bytes = static_cast<double>(setting.inputs.index_key.element_size());
    return {2 * index * causal_pairs(s) + 4 * heads * attended,
            key_bytes * batch * static_cast<double>(s.keys * s.index_dim) +
                element() *
                    (2 * groups * gathered + batch * static_cast<double>(s.queries) * (index + 2 * heads))};
  }

  Json row_of(const Setting& setting, const char* name, const Timing& timing, double peak_mib,
              const Work& work) const {
    const double seconds = timing.median_ms / 1e3;
    return {{"name", name},
            {"phase", setting.phase},
            {"activation", nullptr},
            {"index_keys", nullptr},
            {"length", setting.shape.keys},
            {"queries", setting.shape.queries},
            {"batch", setting.shape.batch},
            {"ms_median", timing.median_ms},
            {"ms_min", timing.min_ms},
            {"ms_max", timing.max_ms},
            {"iterations", timing.iterations},
            {"speedup_vs_dense", setting.dense.timing.median_ms / timing.median_ms},
            {"parts", nullptr},
            {"tflops", work.operations / seconds / 1e12},
            {"gbytes_per_s", work.bytes / seconds / 1e9},
            {"peak_memory_mib", peak_mib}};
  }

  const AttentionBenchOptions& options_;
  const std::function<void(const Json&)>& report_;
  std::pair<int64_t, Dense> longest_dense_{0, {}};
  std::map<std::array<std::string, 4>, std::pair<AttentionShape, double>>
      known_;  // by phase, name, activation, index keys
};

}  // namespace

void bench_attention(const AttentionBenchOptions& options, const std::function<void(const Json&)>& report) {
  Bench(options, report).run();
}

}  // namespace gsa::testing
