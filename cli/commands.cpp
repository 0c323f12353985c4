#include "cli/commands.h"

namespace gsa::cli {
namespace {
int status_ = 0;
}  // namespace

int exit_status() {
  return status_;
}
void set_exit_status(int status) {
  status_ = status;
}

void add_commands(CLI::App& app) {
  add_model(app);
  add_convert(app);
  add_data(app);
  add_tokenizer(app);
  add_bench(app);
  add_eval(app);
  add_train(app);
  add_generate(app);
}

}  // namespace gsa::cli
