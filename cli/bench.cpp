// gsa bench attention: attention with selection beside dense attention, on the same inputs in one process.

#include <c10/core/DeviceType.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "cli/commands.h"
#include "gsa/base/device.h"
#include "gsa/base/error.h"
#include "gsa/base/json.h"
#include "gsa/testing/attention_bench.h"

namespace gsa::cli {
namespace {

using testing::AttentionBenchOptions;

struct Arguments {
  std::string device = "auto", dtype, overlap = "text";
  AttentionBenchOptions bench;
  bool json = false;
};

at::ScalarType parse_dtype(const std::string& name, const at::Device& device) {
  if (name.empty()) return device.is_cpu() ? at::kFloat : at::kBFloat16;
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  fail("--dtype expected float32, bfloat16 or float16, got '", name, "'");
}

std::string optional_number(const Json& value) {
  return value.is_number() ? fmt::format("{:.4g}", value.get<double>()) : "-";
}

void print_header() {
  fmt::print(
      "{:<8} {:>8} {:>8} {:>5}  {:<10} {:<13} {:<13} {:>10} {:>10} {:>9} {:>10} {:>10} {:>8} {:>8} {:>9}\n",
      "phase", "length", "queries", "batch", "name", "activation", "index keys", "ms", "min", "x dense",
      "selection", "attention", "TFLOP/s", "GB/s", "peak MiB");
}

void print_row(const Json& row) {
  if (row.contains("skipped_at_ms")) {
    fmt::print("{:<8} {:>8} {:>8} {:>5}  {:<10} {:<13} {:<13} left out: about {:.3g} s a call\n",
               row["phase"].get<std::string>(), row["length"].get<int64_t>(), row["queries"].get<int64_t>(),
               row["batch"].get<int64_t>(), row["name"].get<std::string>(),
               row["activation"].get<std::string>(), row["index_keys"].get<std::string>(),
               row["skipped_at_ms"].get<double>() / 1e3);
    std::fflush(stdout);
    return;
  }
  const Json parts = row["parts"].is_null() ? Json::object() : row["parts"];
  fmt::print(
      "{:<8} {:>8} {:>8} {:>5}  {:<10} {:<13} {:<13} {:>10.4g} {:>10.4g} {:>9.2f} {:>10} {:>10} {:>8.3g} "
      "{:>8.3g} "
      "{:>9.1f}{}\n",
      row["phase"].get<std::string>(), row["length"].get<int64_t>(), row["queries"].get<int64_t>(),
      row["batch"].get<int64_t>(), row["name"].get<std::string>(),
      row["activation"].is_null() ? "-" : row["activation"].get<std::string>(),
      row["index_keys"].is_null() ? "-" : row["index_keys"].get<std::string>(),
      row["ms_median"].get<double>(), row["ms_min"].get<double>(), row["speedup_vs_dense"].get<double>(),
      optional_number(parts.value("selection", Json())), optional_number(parts.value("attention", Json())),
      row["tflops"].get<double>(), row["gbytes_per_s"].get<double>(), row["peak_memory_mib"].get<double>(),
      row.value("extrapolated", false) ? "  (extrapolated)" : "");
  std::fflush(stdout);
}

void run(Arguments& arguments) {
  AttentionBenchOptions& bench = arguments.bench;
  bench.device = parse_device(arguments.device);
  bench.dtype = parse_dtype(arguments.dtype, bench.device);
  bench.text_overlap = arguments.overlap == "text";
  const bool chunks = std::find(bench.phases.begin(), bench.phases.end(), "chunk") != bench.phases.end();
  const int64_t longest = *std::max_element(bench.lengths.begin(), bench.lengths.end());
  if (chunks && *std::min_element(bench.chunks.begin(), bench.chunks.end()) >= longest)
    fail("--chunks expected one below the longest of --lengths, ", longest, ", got none");
  if (!arguments.json) print_header();
  bool first = true;
  testing::bench_attention(bench, [&](const Json& row) {
    if (!arguments.json) return print_row(row);
    fmt::print("{}{}", first ? "[\n" : ",\n", row.dump(2));  // as it comes: a stopped run keeps its rows
    std::fflush(stdout);
    first = false;
  });
  if (arguments.json) fmt::print("{}]\n", first ? "[" : "\n");
}

/// CLI11's own check names its upper limit, in 300 digits.
CLI::Validator positive() {
  return CLI::Validator(
      [](const std::string& given) {
        int64_t number = 0;
        const auto [stop, error] = std::from_chars(given.data(), given.data() + given.size(), number);
        const bool fits = error == std::errc() && stop == given.data() + given.size() && number > 0;
        return fits ? std::string() : "expected a positive whole number, got " + given;
      },
      "POSITIVE");
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* bench = app.add_subcommand("bench", "Measure speed");
  bench->require_subcommand(1);
  auto* command = bench->add_subcommand(
      "attention", "Attention with selection beside dense attention, on the same inputs in one process");
  auto arguments = std::make_shared<Arguments>();
  AttentionBenchOptions& options = arguments->bench;
  options.lengths = {8192, 16384, 32768, 65536, 131072};
  options.batches = {1, 8, 32};
  options.chunks = {64, 512, 2048};
  options.phases = {"prefill", "decode"};
  options.activations = {"hard_sigmoid", "sigmoid"};
  options.index_keys = {"compute", "float8_e4m3fn"};
  command->add_option("--device", arguments->device, "cpu, cuda or auto")->capture_default_str();
  command->add_option("--dtype", arguments->dtype,
                      "float32, bfloat16 or float16 (default: bfloat16, on a CPU float32)");
  command->add_option("--lengths", options.lengths, "keys S")
      ->delimiter(',')
      ->check(positive())
      ->capture_default_str();
  command->add_option("--batches", options.batches, "sequences that decode together")
      ->delimiter(',')
      ->check(positive())
      ->capture_default_str();
  command->add_option("--chunks", options.chunks, "new tokens of the phase chunk, behind length less so many")
      ->delimiter(',')
      ->check(positive())
      ->capture_default_str();
  command
      ->add_option("--phases", options.phases,
                   "prefill: all tokens at once; chunk: the last ones; decode: one new token")
      ->delimiter(',')
      ->check(CLI::IsMember({"prefill", "chunk", "decode"}))
      ->capture_default_str();
  command->add_option("--activations", options.activations, "of the indexer")
      ->delimiter(',')
      ->check(CLI::IsMember({"sigmoid", "hard_sigmoid", "relu"}))
      ->capture_default_str();
  command
      ->add_option("--index-keys", options.index_keys,
                   "of the decoded cache; compute: of --dtype. A prefill's are always compute")
      ->delimiter(',')
      ->check(CLI::IsMember({"compute", "float8_e4m3fn"}))
      ->capture_default_str();
  command->add_option("--k", options.k, "keys a query attends")->check(positive())->capture_default_str();
  command->add_option("--keep-first", options.keep_first, "first tokens that are always attended")
      ->capture_default_str();
  command->add_option("--keep-recent", options.keep_recent, "last tokens that are always attended")
      ->capture_default_str();
  command->add_option("--heads", options.shape.heads, "query heads H")->capture_default_str();
  command->add_option("--groups", options.shape.groups, "key/value heads G")->capture_default_str();
  command->add_option("--dim", options.shape.dim, "head dimension E")->capture_default_str();
  command->add_option("--index-heads", options.shape.index_heads, "index heads J")->capture_default_str();
  command->add_option("--index-dim", options.shape.index_dim, "index dimension I")->capture_default_str();
  command
      ->add_option("--overlap", arguments->overlap,
                   "text: neighbouring queries choose alike; random: they do not")
      ->check(CLI::IsMember({"text", "random"}))
      ->capture_default_str();
  command
      ->add_option("--dense-limit", options.dense_limit,
                   "longer dense prefills are extrapolated, quadratically")
      ->capture_default_str();
  command
      ->add_option("--reference-limit", options.reference_limit,
                   "longest prefill that the reference is measured at")
      ->capture_default_str();
  command->add_option("--warmup", options.timing.warmup, "runs before the measured ones")
      ->capture_default_str();
  command->add_option("--iterations", options.timing.iterations, "measured runs, at most")
      ->capture_default_str();
  command->add_option("--seconds", options.timing.budget_seconds, "stop a measurement after about this time")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "one JSON array instead of a table");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace gsa::cli
