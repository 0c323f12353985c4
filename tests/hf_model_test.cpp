// Two independent assemblies of the same layer: this library's decoder, and transformers' Llama with the
// Python package's attention.

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "gsa/io/safetensors.h"
#include "gsa/models/checkpoint.h"
#include "gsa/testing/tiny_model.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

TEST(HuggingFaceModel, ComputesTheSameLogitsAsTheDecoder) {
  const fs::path folder = fs::path(GSA_BINARY_DIR) / "hf_model_test";
  fs::remove_all(folder);
  for (const auto& [name, config] : testing::all_variants()) {
    Decoder model = testing::tiny_model(config, at::kDouble);
    save_checkpoint(model, folder / name);
    const at::Tensor tokens = testing::random_tokens(config, 2, 40, 1);
    const at::NoGradGuard no_gradient;
    write_safetensors(folder / name / "expected.safetensors",
                      {{"tokens", tokens}, {"logits", model.logits(model.forward(tokens).hidden)}});
  }
  const std::string command = std::string("GSA_LIBRARY='") + GSA_BINARY_DIR + "/lib/libgsa.so' PYTHONPATH='" +
                              GSA_SOURCE_DIR + "/python' '" + GSA_PYTHON + "' '" + GSA_SOURCE_DIR +
                              "/tests/golden/gsa_logits.py' '" + folder.string() + "'";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

}  // namespace
}  // namespace gsa
