#include "gsa/io/checkpoint_folder.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "gsa/base/error.h"
#include "gsa/base/json.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

class CheckpointFolderTest : public ::testing::Test {
 protected:
  fs::path folder_ = fs::temp_directory_path() / ("gsa_checkpoint_test_" + std::to_string(::getpid()));
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
};

/// Five tensors of 400 bytes.
NamedTensors five() {
  NamedTensors tensors;
  for (int i = 0; i < 5; ++i)
    tensors.emplace_back("layer." + std::to_string(i), at::arange(i, i + 100, at::kFloat));
  return tensors;
}

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_five(const fs::path& folder) {
  const CheckpointTensors read(folder);
  ASSERT_EQ(read.names().size(), 5u);
  for (const auto& [name, tensor] : five()) EXPECT_TRUE(at::equal(read.tensor(name), tensor)) << name;
}

TEST_F(CheckpointFolderTest, OneFile) {
  write_checkpoint_tensors(folder_, five());
  EXPECT_TRUE(fs::exists(folder_ / "model.safetensors"));
  expect_five(folder_);
  expect_five(folder_ / "model.safetensors");
}

TEST_F(CheckpointFolderTest, ShardsOfAtMostTheGivenBytes) {
  write_checkpoint_tensors(folder_, five(), 900);
  EXPECT_FALSE(fs::exists(folder_ / "model.safetensors"));
  const Json index = read_json(folder_ / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 2000);
  EXPECT_EQ(index["weight_map"]["layer.2"], "model-00002-of-00003.safetensors");
  EXPECT_EQ(SafetensorsFile(folder_ / "model-00003-of-00003.safetensors").names().size(), 1u);
  expect_five(folder_);
}

TEST_F(CheckpointFolderTest, ATensorLargerThanAShardGetsItsOwn) {
  write_checkpoint_tensors(folder_, five(), 1);
  EXPECT_TRUE(fs::exists(folder_ / "model-00005-of-00005.safetensors"));
  expect_five(folder_);
}

TEST_F(CheckpointFolderTest, MissingPartsAreNamed) {
  EXPECT_EQ(message_of([&] { CheckpointTensors(folder_ / "absent"); }),
            (folder_ / "absent").string() + ": no such checkpoint folder");
  EXPECT_EQ(
      message_of([&] { CheckpointTensors{folder_}; }),
      folder_.string() +
          ": checkpoint folder lacks model.safetensors (or model.safetensors.index.json and its shards)");
  EXPECT_EQ(message_of([&] { checkpoint_file(folder_, "tokenizer.json"); }),
            folder_.string() + ": checkpoint folder lacks tokenizer.json");
  write_checkpoint_tensors(folder_, five(), 900);
  EXPECT_EQ(message_of([&] { CheckpointTensors(folder_).tensor("lm_head"); }),
            folder_.string() + ": no tensor called 'lm_head'");
  write_safetensors(folder_ / "model-00003-of-00003.safetensors", {{"other", at::zeros({1})}});
  EXPECT_EQ(message_of([&] { CheckpointTensors{folder_}; }),
            (folder_ / "model-00003-of-00003.safetensors").string() +
                ": lacks tensor 'layer.4', which model.safetensors.index.json puts there");
  fs::remove(folder_ / "model-00002-of-00003.safetensors");
  EXPECT_EQ(message_of([&] { CheckpointTensors{folder_}; }),
            folder_.string() +
                ": checkpoint folder lacks model-00002-of-00003.safetensors, a shard that "
                "model.safetensors.index.json names");
}

TEST_F(CheckpointFolderTest, AMaliciousIndexCannotLeaveTheFolder) {
  for (const char* index : {R"({"weight_map": {"a": "../x.safetensors"}})", R"({"weight_map": {"a": 3}})",
                            R"({"weight_map": []})", "[]"}) {
    write_file(folder_ / "model.safetensors.index.json", index);
    EXPECT_NE(message_of([&] { CheckpointTensors{folder_}; }).find("expected"), std::string::npos) << index;
  }
}

TEST_F(CheckpointFolderTest, AtomicFolderAppearsWhole) {
  const fs::path target = folder_ / "deep" / "step-10";
  {
    AtomicFolder abandoned(target);
    write_file(abandoned.path() / "a", "half");
  }
  EXPECT_TRUE(fs::is_empty(folder_ / "deep"));
  for (const char* text : {"first", "second"}) {
    AtomicFolder folder(target / "");
    write_file(folder.path() / text, text);
    EXPECT_NE(folder.path(), target);
    folder.commit();
    EXPECT_EQ(read_file(target / text), text);
  }
  EXPECT_FALSE(fs::exists(target / "first")) << "the new folder replaces the old one";
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "deep"), {}), 1);
}

}  // namespace
}  // namespace gsa
