#include "gsa/base/config.h"

#include <gtest/gtest.h>

namespace gsa {
namespace {

struct Inner {
  double learning_rate = 1e-3;
  std::vector<std::string> names;
  template <class V>
  void fields(V&& field) {
    field("learning_rate", learning_rate);
    field("names", names);
  }
};
struct Outer {
  int64_t steps = 10;
  bool fast = false;
  std::optional<int64_t> seed;
  Inner optimizer;
  std::vector<Inner> stages;
  template <class V>
  void fields(V&& field) {
    field("steps", steps);
    field("fast", fast);
    field("seed", seed);
    field("optimizer", optimizer);
    field("stages", stages);
  }
};

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Config, RoundTrips) {
  Outer config;
  config.seed = 7;
  config.stages.resize(2);
  config.stages[1].names = {"a"};
  Outer again;
  config_from_json(config_to_json(config), again, "test");
  EXPECT_EQ(config_to_json(config), config_to_json(again));
}

TEST(Config, CommentsAreAllowedAndPartialDocumentsKeepDefaults) {
  Outer config;
  config_from_json(parse_json("{/* a */ \"optimizer\": {\"learning_rate\": 1} // b\n}", "test"), config,
                   "test");
  EXPECT_EQ(config.optimizer.learning_rate, 1.0);
  EXPECT_EQ(config.steps, 10);
}

TEST(Config, UnknownKeyNamesTheNearest) {
  Outer config;
  const auto text = message_of([&] {
    config_from_json(parse_json(R"({"optimizer": {"learning_rat": 1}})", "t"), config, "run.json");
  });
  EXPECT_EQ(text, "run.json: optimizer.learning_rat: unknown key (did you mean 'learning_rate'?)");
}

TEST(Config, WrongTypeNamesTheKey) {
  Outer config;
  EXPECT_EQ(
      message_of([&] { config_from_json(parse_json(R"({"steps": "many"})", "t"), config, "run.json"); }),
      "run.json: steps: expected a whole number, got \"many\"");
  EXPECT_EQ(message_of([&] { config_from_json(parse_json(R"({"steps": 1.5})", "t"), config, "run.json"); }),
            "run.json: steps: expected a whole number, got 1.5");
  config_from_json(parse_json(R"({"steps": 1e6})", "t"), config, "run.json");
  EXPECT_EQ(config.steps, 1000000);
}

TEST(Config, SetFollowsDottedPaths) {
  Outer config;
  config.stages.resize(1);
  config_set(config, "stages.0.learning_rate=3e-4");
  config_set(config, "fast=true");
  EXPECT_EQ(config.stages[0].learning_rate, 3e-4);
  EXPECT_TRUE(config.fast);
  EXPECT_EQ(message_of([&] { config_set(config, "optimiser.learning_rate=1"); }),
            "--set optimiser.learning_rate=1: unknown key 'optimiser' (did you mean 'optimizer'?)");
  EXPECT_EQ(message_of([&] { config_set(config, "stages.3.learning_rate=1"); }),
            "--set stages.3.learning_rate=1: '3' expected an index below 1");
}

}  // namespace
}  // namespace gsa
