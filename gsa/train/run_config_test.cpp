#include "gsa/train/run_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/base/file.h"

namespace gsa {
namespace {

class RunConfigTest : public ::testing::Test {
 protected:
  RunConfigTest()
      : folder_(std::filesystem::temp_directory_path() / ("gsa_run_config_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
    write_file(folder_ / "tiny.json",
               R"({"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
      "num_attention_heads": 4, "num_key_value_heads": 2,
      "gsa": {"indexer": {"index_heads": 2, "index_dim": 16, "index_rotary_dim": 8, "keep_first": 1, "keep_recent": 4},
              "budget": {"k_base": 16, "k_min": 8, "k_max": 32}}})");
  }
  ~RunConfigTest() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& text) {
    write_file(folder_ / "run.json", text);
    return folder_ / "run.json";
  }
  std::string message(const std::string& text, const std::vector<std::string>& sets = {}) {
    try {
      load_run_config(write(text), sets);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  static std::string run(const std::string& rest) {
    return R"({// a run
      "output": "out", "model_config": "tiny.json", "data": {"sources": [{"path": "tokens"}]},)" +
           rest + "}";
  }
  std::filesystem::path folder_;
};

TEST_F(RunConfigTest, TheModelIsLaidOverItsFileAndSetsComeLast) {
  const auto config = load_run_config(
      write(run(
          R"("model": {"num_hidden_layers": 3, "gsa": {"budget": {"k_base": 20}}}, "stages": [{"kind": "sparse", "steps": 1e2}])")),
      {"model.gsa.budget.k_min=12", "stages.0.learning_rate=3e-4"});
  EXPECT_EQ(config.model.hidden_size, 32);
  EXPECT_EQ(config.model.num_hidden_layers, 3);
  EXPECT_EQ(config.model.gsa.budget.k_base, 20);
  EXPECT_EQ(config.model.gsa.budget.k_min, 12);
  EXPECT_EQ(config.model.gsa.budget.k_max, 32);
  EXPECT_EQ(config.stages[0].steps, 100);
  EXPECT_EQ(config.stages[0].learning_rate, 3e-4);
}

TEST_F(RunConfigTest, ResolvedConfigurationReadsBackTheSame) {
  const auto config = load_run_config(write(run(R"("stages": [{"kind": "dense"}])")), {});
  const auto resolved = config_to_json(config);
  const auto again = load_run_config(write(resolved.dump()), {});
  EXPECT_TRUE(differing_fields(resolved, config_to_json(again)).empty());
}

TEST_F(RunConfigTest, MistakesAreNamed) {
  EXPECT_NE(message(run(R"("stagse": [])")).find("stagse: unknown key (did you mean 'stages'?)"),
            std::string::npos);
  EXPECT_NE(message(run(R"("model": {"hidden": 3}, "stages": [{}])")).find("model.hidden: unknown key"),
            std::string::npos);
  EXPECT_EQ(message(run(R"("stages": [{}, {"kind": "spars"}])")),
            "stages.1.kind: expected 'dense', 'indexer_warmup' or 'sparse', got 'spars'");
  EXPECT_EQ(message(run(R"("stages": [{"steps": 0}])")), "stages.0.steps: expected at least 1, got 0");
  EXPECT_EQ(message(run(R"("stages": [])")), "stages: expected at least one stage, got none");
  EXPECT_EQ(message(run(R"("stages": [{"kind": "sparse"}], "model": {"gsa": {"indexer": null}})")),
            "stages.0.kind: expected a model with an indexer (model.gsa.indexer) for this stage, got "
            "'sparse' and a model without one");
  EXPECT_EQ(message(run(R"("stages": [{}])"), {"dtype=half"}),
            "dtype: expected 'float32' or 'bfloat16', got 'half'");
  EXPECT_NE(message(run(R"("stages": [{}])"), {"model_config=nowhere.json"}).find("nowhere.json"),
            std::string::npos);
}

TEST(RunFiles, EachOneIsValid) {
  int64_t files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(GSA_SOURCE_DIR) / "configs" / "runs")) {
    EXPECT_NO_THROW(load_run_config(entry.path(), {})) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 4);
}

TEST_F(RunConfigTest, DenseInDisguise) {
  GsaConfig gsa;
  gsa.budget = {.rule = "fixed", .k_base = 64, .k_min = 16, .k_max = 128};
  EXPECT_FALSE(dense_in_disguise(gsa, 65).has_value());
  EXPECT_TRUE(dense_in_disguise(gsa, 64).has_value());
  gsa.budget.rule = "inverse";
  EXPECT_FALSE(dense_in_disguise(gsa, 17).has_value());
  EXPECT_TRUE(dense_in_disguise(gsa, 16).has_value());
  gsa.indexer.reset();
  EXPECT_FALSE(dense_in_disguise(gsa, 4).has_value());
}

TEST(DifferingFields, NamesThem) {
  const Json a{{"x", 1}, {"y", {{"z", 2}}}}, b{{"x", 1}, {"y", {{"z", 3}}}};
  EXPECT_EQ(differing_fields(a, b), std::vector<std::string>{"y.z"});
  EXPECT_TRUE(differing_fields(a, a).empty());
}

}  // namespace
}  // namespace gsa
