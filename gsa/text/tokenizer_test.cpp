#include "gsa/text/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/testing/random.h"
#include "gsa/text/sha256.h"
#include "gsa/text/utf8.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;
using JsonMap = nlohmann::json;

/// The tokenizers and cases that tokenizer_golden.py makes with the `tokenizers` package, once per run of the
/// tests.
class TokenizerTest : public ::testing::Test {
 protected:
  static fs::path folder() {
    return fs::temp_directory_path() / ("gsa_tokenizer_test_" + std::to_string(::getpid()));
  }
  static void SetUpTestSuite() {
    fs::create_directories(folder());
    const std::string seed = std::to_string(testing::run_seed() % 1000000007);
    const std::string script = std::string(GSA_SOURCE_DIR) + "/gsa/text/tokenizer_golden.py";
    const std::string command = std::string(GSA_PYTHON) + " " + script + " " + folder().string() + " " + seed;
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  static void TearDownTestSuite() { fs::remove_all(folder()); }
  static fs::path file(const std::string& name) { return folder() / (name + ".json"); }
};

/// What goes wrong with one case, or "".
std::string mistake(const Tokenizer& tokenizer, const JsonMap& item) {
  const auto text = item[0].get<std::string>();
  const auto shown = item[3].get<std::vector<int32_t>>();
  if (tokenizer.encode(text) != item[1].get<std::vector<int32_t>>()) return "encode";
  if (tokenizer.encode(text, /*add_special=*/true) != item[2].get<std::vector<int32_t>>())
    return "encode with special tokens";
  if (tokenizer.encode_ordinary(text) != item[6].get<std::vector<int32_t>>())
    return "encode as ordinary text";
  if (tokenizer.decode(shown) != item[4].get<std::string>()) return "decode";
  if (tokenizer.decode(shown, /*skip_special=*/true) != item[5].get<std::string>())
    return "decode without special tokens";
  StreamDecoder stream(tokenizer);
  std::string streamed;
  for (int32_t id : shown) {
    const std::string part = stream.push(id);
    if (find_invalid_utf8(part)) return "half a character";
    streamed += part;
  }
  return streamed + stream.finish() == item[4].get<std::string>() ? "" : "stream decoding";
}

TEST_F(TokenizerTest, EqualsTheTokenizersPackage) {
  int tokenizers = 0;
  for (const auto& entry : fs::directory_iterator(folder())) {
    const std::string name = entry.path().filename().string();
    const size_t suffix = name.find(".cases.json");
    if (suffix == std::string::npos) continue;
    ++tokenizers;
    const Tokenizer tokenizer = Tokenizer::load(file(name.substr(0, suffix)));
    const JsonMap cases = JsonMap::parse(read_file(entry.path()));
    ASSERT_GT(cases.size(), 100u);
    int wrong = 0;
    for (const auto& item : cases) {
      const std::string what = mistake(tokenizer, item);
      if (what.empty()) continue;
      if (++wrong <= 3) ADD_FAILURE() << name << ": " << what << ": " << JsonMap(item).dump().substr(0, 1500);
    }
    EXPECT_EQ(wrong, 0) << name << ": of " << cases.size() << " cases, seed " << testing::run_seed();
  }
  EXPECT_EQ(tokenizers, 22);
}

TEST_F(TokenizerTest, RoundTripsAnyText) {
  const Tokenizer tokenizer = Tokenizer::load(file("llama3"));
  for (uint64_t round = 0; round < 200; ++round) {
    auto random = testing::case_generator(round);
    std::string text;
    for (int64_t i = testing::draw(random, 0, 100); i > 0; --i) {
      const auto code_point = static_cast<char32_t>(
          testing::draw(random, 0, 1) ? testing::draw(random, 0, 127) : testing::draw(random, 128, 0x10FFFF));
      if (code_point < 0xD800 || code_point > 0xDFFF) append_code_point(text, code_point);
    }
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << "round " << round;
  }
}

TEST_F(TokenizerTest, ThreadsShareATokenizer) {
  const Tokenizer tokenizer = Tokenizer::load(file("qwen"));
  const std::string text = read_file(std::string(GSA_SOURCE_DIR) + "/gsa/text/tokenizer_golden.py");
  const auto expected = tokenizer.encode(text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  threads.reserve(results.size());
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) result = tokenizer.encode(text);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST_F(TokenizerTest, KnowsItsTokens) {
  const Tokenizer tokenizer = Tokenizer::load(file("llama3"));
  EXPECT_EQ(tokenizer.vocab_size(), 1200);
  EXPECT_EQ(tokenizer.end_of_text(), tokenizer.token_id("<|end_of_text|>"));
  EXPECT_TRUE(tokenizer.is_special(*tokenizer.token_id("<|begin_of_text|>")));
  EXPECT_FALSE(tokenizer.is_special(*tokenizer.token_id("a")));
  EXPECT_FALSE(tokenizer.token_id("no such token"));
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.token_id("Ġ")), " ");
  EXPECT_EQ(tokenizer.hash(), "sha256:" + sha256_hex(read_file(file("llama3"))));
  EXPECT_NE(tokenizer.hash(), Tokenizer::load(file("gpt2")).hash());
  EXPECT_THROW(tokenizer.decode(std::vector<int32_t>{1200}), Error);
  EXPECT_THROW(tokenizer.decode(std::vector<int32_t>{-1}), Error);
}

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(TokenizerTest, InvalidUtf8IsAClearError) {
  const Tokenizer tokenizer = Tokenizer::load(file("gpt2"));
  for (const char* bytes :
       {"ab\xff", "ab\xc0\x80", "ab\xed\xa0\x80", "ab\xf4\x90\x80\x80", "ab\xe2\x82", "ab\x80"}) {
    EXPECT_EQ(message_of([&] { tokenizer.encode(bytes); }), "text: not valid UTF-8 at byte 2");
  }
}

TEST_F(TokenizerTest, AFileItCannotReadIsAClearError) {
  const std::string good = read_file(file("llama3"));
  const fs::path path = folder() / "broken";
  const auto broken = [&](auto&& change) {
    JsonMap json = JsonMap::parse(good);
    change(json);
    write_file(path, json.dump());
    return message_of([&] { Tokenizer::load(path); });
  };
  const auto says = [](const std::string& message, const char* expected) {
    EXPECT_NE(message.find(expected), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  };
  says(broken([](JsonMap& json) { json["model"]["type"] = "WordPiece"; }), "model expected BPE");
  says(broken([](JsonMap& json) { json["model"]["dropout"] = 0.1; }),
       "'dropout' is not part of byte-level BPE, got 0.1");
  says(broken([](JsonMap& json) { json["model"]["merges"].push_back("zz a"); }), "a merge names 'zz'");
  says(broken([](JsonMap& json) { json["model"]["merges"] = {1}; }), "merges expected");
  says(broken([](JsonMap& json) { json["model"]["vocab"]["a"] = -1; }), "vocab expected ids");
  says(broken([](JsonMap& json) { json["pre_tokenizer"] = {{"type", "Metaspace"}}; }), "got 'Metaspace'");
  says(broken([](JsonMap& json) { json["pre_tokenizer"] = nullptr; }), "pre_tokenizer expected");
  says(broken([](JsonMap& json) { json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(["; }),
       "pattern '(['");
  says(broken([](JsonMap& json) { json["normalizer"] = {{"type", "Lowercase"}}; }), "got 'Lowercase'");
  says(broken([](JsonMap& json) { json["decoder"] = {{"type", "Fuse"}}; }), "decoder expected ByteLevel");
  says(broken([](JsonMap& json) {
         json["post_processor"] = {{"type", "Other"}};
       }),
       "post_processor expected");
  says(broken([](JsonMap& json) { json["added_tokens"] = {{{"id", 3}}}; }), "added_tokens expected");
  says(broken([](JsonMap& json) { json = {1, 2}; }), "not a tokenizer.json");
  write_file(path, good.substr(0, good.size() / 2));
  says(message_of([&] { Tokenizer::load(path); }), "not a tokenizer.json");
  says(message_of([&] { Tokenizer::load(folder() / "absent"); }), "no tokenizer.json there");
}

TEST_F(TokenizerTest, MutatedFilesNeverDoWorseThanAnError) {
  const std::string good = read_file(file("small_unknown"));
  int accepted = 0;
  for (uint64_t round = 0; round < 150; ++round) {
    auto random = testing::case_generator(round);
    std::string bytes = good;
    for (int64_t change = testing::draw(random, 1, 3); change > 0; --change) {
      const size_t at = testing::draw(random, 0, static_cast<int64_t>(bytes.size()) - 20);
      if (testing::draw(random, 0, 2) == 0) {
        bytes.erase(at, testing::draw(random, 1, 12));
      } else {
        bytes[at] = "0123456789{}[],:\"-nul?aĠ"[testing::draw(random, 0, 24)];
      }
    }
    const fs::path path = folder() / "mutated";
    std::ofstream(path, std::ios::binary) << bytes;  // write_file's fsync would take most of the time
    try {
      const Tokenizer tokenizer = Tokenizer::load(path);
      tokenizer.decode(tokenizer.encode("at tea ?? ab\n"));
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos)
          << "round " << round << ": " << error.what();
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 150);
}

TEST(Sha256, EqualsThePublishedVectors) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Utf8, FindsUnfinishedCharacters) {
  EXPECT_EQ(finished_utf8("ab"), 2u);
  EXPECT_EQ(finished_utf8("ab\xe2\x82"), 2u);
  EXPECT_EQ(finished_utf8("ab\xf0\x9f\x99"), 2u);
  EXPECT_EQ(finished_utf8("\xf0\x9f\x99\x82"), 4u);
  EXPECT_EQ(finished_utf8("a\xff"), 2u) << "never becomes valid";
  EXPECT_EQ(repair_utf8("a\xe2\x82z\xffq"), "a\xEF\xBF\xBDz\xEF\xBF\xBDq");
}

}  // namespace
}  // namespace gsa
