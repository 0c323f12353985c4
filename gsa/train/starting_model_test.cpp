#include "gsa/train/starting_model.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "gsa/base/error.h"
#include "gsa/models/checkpoint.h"
#include "gsa/testing/tiny_model.h"

namespace gsa {
namespace {

TEST(StartingModel, AGatedCheckpointGetsAnIndexerAndKeepsItsGates) {
  const auto folder = std::filesystem::path(GSA_BINARY_DIR) / "starting_model_test";
  std::filesystem::remove_all(folder);
  Decoder gated = testing::tiny_model(testing::tiny_config("gated"), at::kFloat);
  save_checkpoint(gated, folder);

  RunConfig run;
  run.checkpoint = folder.string();
  run.model = gated.config();
  run.model.gsa.indexer = testing::tiny_config("gsa").gsa.indexer;
  run.model.gsa.budget = testing::tiny_config("gsa").gsa.budget;
  Decoder model = starting_model(run, at::kCPU);
  EXPECT_EQ(variant_name(model.config().gsa), "gsa");
  EXPECT_TRUE(at::equal(model.layers()[0].self_attn.output_gate.weight,
                        gated.layers()[0].self_attn.output_gate.weight));

  run.model.gsa.gates.value_gate = false;  // gates are part of what was trained
  EXPECT_THROW(starting_model(run, at::kCPU), Error);
}

}  // namespace
}  // namespace gsa
