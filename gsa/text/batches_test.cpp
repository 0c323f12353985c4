#include "gsa/text/batches.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <numeric>
#include <set>

#include "gsa/base/error.h"
#include "gsa/testing/random.h"
#include "gsa/text/token_shards.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

class BatchesTest : public ::testing::Test {
 protected:
  fs::path folder_ = fs::temp_directory_path() / ("gsa_batches_test_" + std::to_string(::getpid()));
  void TearDown() override { fs::remove_all(folder_); }

  /// A data folder of documents with these lengths. Tokens count up through all of them, so that each is its
  /// own position.
  std::string data(const std::string& name, const std::vector<int64_t>& lengths, int64_t shard_tokens = 1000,
                   int64_t vocab_size = 1 << 20, const std::string& hash = "sha256:a") {
    fs::create_directories(folder_ / name);
    TokenShardWriter writer(folder_ / name, "train", vocab_size, shard_tokens);
    int32_t next = 0;
    for (int64_t length : lengths) {
      std::vector<int32_t> document(length);
      std::iota(document.begin(), document.end(), next);
      next += static_cast<int32_t>(length);
      writer.add_document(document);
    }
    write_json(folder_ / name / "manifest.json", {{"tokenizer", {{"hash", hash}, {"vocab_size", vocab_size}}},
                                                  {"splits", {{"train", writer.finish()}}}});
    return (folder_ / name).string();
  }
};

std::vector<int64_t> random_lengths(std::mt19937_64& random, int64_t documents, int64_t longest) {
  std::vector<int64_t> lengths(documents);
  for (auto& length : lengths) length = testing::draw(random, 0, longest);
  return lengths;
}

/// The first token of each document, from the lengths.
std::set<int64_t> starts_of(const std::vector<int64_t>& lengths) {
  std::set<int64_t> starts{0};
  int64_t sum = 0;
  for (int64_t length : lengths) starts.insert(sum += length);
  return starts;
}

std::vector<int64_t> row(const at::Tensor& batch, int64_t index) {
  const auto* data = batch.const_data_ptr<int64_t>() + index * batch.size(1);
  return {data, data + batch.size(1)};
}

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(BatchesTest, ShardsGiveBackTheirDocuments) {
  for (int64_t vocab_size : {int64_t{1} << 16, int64_t{1} << 20}) {
    const std::vector<int64_t> lengths = {3, 700, 0, 299, 1, 5000, 2};
    const TokenShards shards(data("a", lengths, 1000, vocab_size));
    ASSERT_EQ(shards.documents(), 7);
    EXPECT_EQ(shards.tokens(), 6005);
    EXPECT_EQ(shards.vocab_size(), vocab_size);
    int64_t expected = 0;
    for (int64_t document = 0; document < 7; ++document) {
      ASSERT_EQ(shards.document_length(document), lengths[document]);
      std::vector<int64_t> tokens(lengths[document]);
      shards.read(document, 0, tokens);
      for (int64_t token : tokens) EXPECT_EQ(token, expected++);
    }
    std::vector<int64_t> middle(10);
    shards.read(5, 4990, middle);
    EXPECT_EQ(middle.front(), 3 + 700 + 299 + 1 + 4990);
    EXPECT_THROW(shards.read(5, 4991, middle), Error);
    EXPECT_THROW(shards.read(7, 0, middle), Error);
    fs::remove_all(folder_ / "a");
  }
}

TEST_F(BatchesTest, BrokenDataFoldersAreClearErrors) {
  EXPECT_NE(
      message_of([&] { TokenShards(folder_ / "absent"); }).find("expected a data folder with manifest.json"),
      std::string::npos);
  const std::string path = data("a", {400, 700, 10}, 500);
  EXPECT_NE(message_of([&] { TokenShards(path, "held_out"); }).find("lacks \"held_out\""), std::string::npos);
  fs::copy_file(path + "/train-00001.safetensors", path + "/train-00000.safetensors",
                fs::copy_options::overwrite_existing);
  EXPECT_NE(message_of([&] { TokenShards{path}; }).find("not the shard that manifest.json describes"),
            std::string::npos);
  fs::remove(path + "/train-00000.safetensors");
  EXPECT_NE(message_of([&] { TokenShards{path}; }).find("lacks train-00000.safetensors"), std::string::npos);
}

TEST_F(BatchesTest, PackedEpochsHoldEveryWindowOnce) {
  for (uint64_t round = 0; round < 20; ++round) {
    auto random = testing::case_generator(round);
    const auto lengths = random_lengths(random, testing::draw(random, 5, 60), 40);
    const int64_t length = testing::draw(random, 1, 30);
    const std::string name = std::to_string(round);
    const std::string path = data(name, lengths, 100);
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    if (total <= length) continue;
    const auto starts = starts_of(lengths);
    TokenBatches batches({{path}}, {length, 1, round});
    ASSERT_EQ(batches.sequences_per_epoch(), (total - 1) / length);
    for (int epoch = 0; epoch < 2; ++epoch) {
      std::set<int64_t> inputs;
      for (int64_t i = 0; i < batches.sequences_per_epoch(); ++i) {
        const auto tokens = row(batches.next(), 0);
        inputs.insert(tokens.begin(), tokens.end() - 1);
        for (size_t t = 1; t < tokens.size(); ++t) {
          const bool follows = tokens[t] == tokens[t - 1] + 1;
          const bool ends = starts.count(tokens[t - 1] + 1) > 0 && starts.count(tokens[t]) > 0;
          EXPECT_TRUE(follows || ends) << "round " << round << ": " << tokens[t - 1] << " then " << tokens[t];
        }
      }
      EXPECT_EQ(static_cast<int64_t>(inputs.size()), batches.sequences_per_epoch() * length)
          << "round " << round;
    }
  }
}

TEST_F(BatchesTest, WindowsStayInsideLongDocuments) {
  const std::vector<int64_t> lengths = {10, 95, 32, 33, 5, 200};
  const auto starts = starts_of(lengths);
  for (bool shuffle : {false, true}) {
    TokenBatches batches({{data("a", lengths)}}, {32, 1, 3, "windows", shuffle});
    ASSERT_EQ(batches.sequences_per_epoch(), 2 + 0 + 1 + 6);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < batches.sequences_per_epoch(); ++i) {
      const auto tokens = row(batches.next(), 0);
      for (size_t t = 1; t < tokens.size(); ++t) {
        EXPECT_EQ(tokens[t], tokens[t - 1] + 1);
        EXPECT_EQ(starts.count(tokens[t]), 0u);
      }
      EXPECT_TRUE(seen.insert(tokens[0]).second);
      if (!shuffle && i == 0) {
        EXPECT_EQ(tokens[0], 10);
      }
    }
    fs::remove_all(folder_ / "a");
  }
}

TEST_F(BatchesTest, SourcesGetTheirShares) {
  const std::vector<double> weights = {0.7, 0.05, 0.25, 1.5};
  std::vector<TokenSource> sources;
  for (size_t i = 0; i < weights.size(); ++i) {
    // Document lengths name the source: all its tokens lie in a range of their own.
    const std::string path = data(std::to_string(i), {static_cast<int64_t>(50 * (i + 1))}, 1000);
    sources.push_back({path, weights[i]});
  }
  TokenBatches batches(sources, {9, 3, 1});
  for (int step = 1; step <= 200; ++step) {
    batches.next();
    const Json state = batches.state();
    for (size_t i = 0; i < weights.size(); ++i) {
      const double expected = 3 * step * weights[i] / 2.5;
      EXPECT_NEAR(state["sources"][i]["sequences"].get<double>(), expected, 4.0)
          << "source " << i << " after " << step << " batches";
    }
  }
}

TEST_F(BatchesTest, ResumesToTheBit) {
  for (uint64_t round = 0; round < 10; ++round) {
    auto random = testing::case_generator(round);
    const std::string name = std::to_string(round);
    const std::vector<TokenSource> sources = {{data(name + "a", random_lengths(random, 40, 60)), 2.5},
                                              {data(name + "b", random_lengths(random, 12, 300)), 1}};
    TokenBatchOptions options{17, 4, round, round % 2 ? "packed" : "windows"};
    TokenBatches first(sources, options);
    for (int64_t i = testing::draw(random, 0, 60); i > 0; --i) first.next();
    const Json state = Json::parse(first.state().dump());
    std::vector<at::Tensor> expected(60);
    for (auto& batch : expected) batch = first.next();
    TokenBatches again(sources, options);
    again.set_state(state);
    for (const auto& batch : expected) ASSERT_TRUE(at::equal(again.next(), batch)) << "round " << round;
    options.batch_size = 6;
    TokenBatches wider(sources, options);
    wider.set_state(state);
    for (int i = 0; i < 60; i += 3) {
      const at::Tensor two = at::cat({wider.next(), wider.next()});
      ASSERT_TRUE(at::equal(two, at::cat({expected[i], expected[i + 1], expected[i + 2]})))
          << "round " << round;
    }
  }
}

TEST_F(BatchesTest, TheSeedAndTheEpochDecideTheOrder) {
  const std::string path = data("a", std::vector<int64_t>(50, 20));
  const auto epoch = [&](TokenBatches& batches) {
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < batches.sequences_per_epoch(); ++i) rows.push_back(batches.next());
    return at::cat(rows);
  };
  TokenBatches one({{path}}, {10, 1, 1});
  TokenBatches same({{path}}, {10, 1, 1});
  TokenBatches other({{path}}, {10, 1, 2});
  const at::Tensor first = epoch(one);
  EXPECT_TRUE(at::equal(first, epoch(same)));
  EXPECT_FALSE(at::equal(first, epoch(other)));
  EXPECT_FALSE(at::equal(first, epoch(one)));
  TokenBatches in_order({{path}}, {10, 1, 1, "packed", /*shuffle=*/false});
  EXPECT_EQ(row(in_order.next(), 0).front(), 0);
  EXPECT_EQ(row(in_order.next(), 0).back(), 20);
}

TEST_F(BatchesTest, MistakesAreClearErrors) {
  const std::string path = data("a", {20, 30});
  const auto says = [](auto&& action, const std::string& expected) {
    const std::string message = message_of(action);
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  };
  says([&] { TokenBatches({}, {}); }, "expected at least one source");
  says(
      [&] {
        TokenBatches({{path}}, {50, 1, 0});
      },
      "expected at least 51 tokens for sequence_length 50, got 50");
  says(
      [&] {
        TokenBatches({{path}}, {30, 1, 0, "windows"});
      },
      "expected a document of at least 31 tokens for sequence_length 30, got 30");
  says([&] { TokenBatches({{path, 0.0}}, {10, 1, 0}); }, "expected a positive number, got 0");
  says([&] { TokenBatches({{path}}, {0, 1, 0}); }, "sequence_length expected at least 1");
  says([&] { TokenBatches({{path}}, {10, 0, 0}); }, "batch_size expected at least 1");
  says(
      [&] {
        TokenBatches({{path}}, {10, 1, 0, "paked"});
      },
      "packing expected 'packed' or 'windows', got 'paked'");
  const std::string other = data("b", {20, 30}, 1000, 1 << 20, "sha256:b");
  says([&] { TokenBatches({{path}, {other}}, {10, 1, 0}); }, "was made with another tokenizer");
  TokenBatches batches({{path}}, {10, 1, 0});
  says(
      [&] {
        batches.set_state(TokenBatches({{path}}, {11, 1, 0}).state());
      },
      "sequence_length expected 10 as in this run, got 11");
  says(
      [&] {
        batches.set_state(TokenBatches({{data("c", {20, 31})}}, {10, 1, 0}).state());
      },
      "tokens expected 50 as in this run, got 51");
  Json beyond = batches.state();
  beyond["sources"][0]["position"] = 99;
  says([&] { batches.set_state(beyond); }, "no position 99");
  says([&] { batches.set_state(Json::object()); }, "seed expected 0");
}

}  // namespace
}  // namespace gsa
