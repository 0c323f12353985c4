// gsa train: runs a run file's stages.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/train/stop_signal.h"
#include "gsa/train/trainer.h"

namespace gsa::cli {
namespace {

/// One line that is overwritten on a terminal; elsewhere a line now and then.
class ProgressPrinter {
 public:
  void step(const StepReport& report) {
    const auto now = std::chrono::steady_clock::now();
    const bool ends_stage = report.stage_step == report.stage_steps;
    const auto pause = std::chrono::milliseconds(terminal_ ? 200 : 10000);
    if (!first_ && !ends_stage && now - last_ < pause) return;
    first_ = false;
    last_ = now;
    if (report.index_share)
      share_ = report.index_share;  // measured now and then; shown with every line of the stage
    StepReport shown = report;
    if (shown.index_kl && !shown.index_share) shown.index_share = share_;
    if (ends_stage) share_.reset();
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", progress_line(shown).c_str());
    open_line_ = terminal_;
    if (ends_stage) close_line();
    std::fflush(stderr);
  }

  void line(const char* prefix, const std::string& text) {
    close_line();
    std::fprintf(stderr, "%s%s\n", prefix, text.c_str());
  }

  void close_line() {
    if (open_line_) std::fputc('\n', stderr);
    open_line_ = false;
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  bool first_ = true;
  bool open_line_ = false;
  std::optional<double> share_;
  std::chrono::steady_clock::time_point last_{};
};

struct TrainArguments {
  std::string config, device, output;
  std::vector<std::string> sets;
  bool resume = false;
  bool print_config = false;
};

void train(const TrainArguments& arguments) {
  std::vector<std::string> sets = arguments.sets;
  if (!arguments.device.empty()) sets.push_back("device=" + arguments.device);
  if (!arguments.output.empty()) sets.push_back("output=" + arguments.output);
  const RunConfig config = load_run_config(arguments.config, sets);
  if (arguments.print_config) {
    std::printf("%s\n", config_to_json(config).dump(2).c_str());
    return;
  }
  const StopSignal signal;
  ProgressPrinter printer;
  TrainingEvents events;
  events.step = [&](const StepReport& report) { printer.step(report); };
  events.notice = [&](const std::string& text) { printer.line("", text); };
  events.warning = [&](const std::string& text) { printer.line("warning: ", text); };
  events.stop = [&] { return signal.requested(); };
  try {
    const TrainingOutcome outcome = run_training(config, arguments.resume, events);
    if (outcome == TrainingOutcome::stopped) {
      printer.line("", "stopped; --resume goes on");
      set_exit_status(130);
    } else {
      printer.line("", "finished; the model is in " + config.output + "/final");
    }
  } catch (...) {
    printer.close_line();
    throw;
  }
}

}  // namespace

void add_train(CLI::App& app) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command =
      app.add_subcommand("train", "Train a model: the stages of a run file (see configs/runs)");
  command->add_option("--config", arguments->config, "Run file, JSON with comments")
      ->required()
      ->type_name("FILE");
  command->add_option("--set", arguments->sets, "Change a value of the run file, e.g. stages.0.steps=100")
      ->type_name("NAME=VALUE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--output", arguments->output, "Folder for checkpoints and metrics (--set output=...)")
      ->type_name("FOLDER");
  command->add_option("--device", arguments->device, "auto, cpu, cuda or cuda:N (--set device=...)");
  command->add_flag("--resume", arguments->resume, "Go on from the newest checkpoint of the output folder");
  command->add_flag("--print-config", arguments->print_config, "Print the resolved configuration and leave");
  command->callback([arguments] { train(*arguments); });
}

}  // namespace gsa::cli
