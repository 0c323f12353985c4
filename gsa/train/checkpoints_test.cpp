#include "gsa/train/checkpoints.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "gsa/base/error.h"
#include "gsa/base/file.h"

namespace gsa {
namespace {

class CheckpointsTest : public ::testing::Test {
 protected:
  CheckpointsTest()
      : output_(std::filesystem::temp_directory_path() / ("gsa_checkpoints_" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(output_);
  }
  ~CheckpointsTest() override { std::filesystem::remove_all(output_); }

  static void write(const std::filesystem::path& folder) { write_file(folder / "a", "content"); }

  std::filesystem::path output_;
};

TEST_F(CheckpointsTest, KeepsTheNewestAndThePinned) {
  Checkpoints checkpoints(output_, 2, {20});
  EXPECT_FALSE(checkpoints.latest().has_value());
  for (int64_t step = 10; step <= 60; step += 10) checkpoints.save(step, write);
  EXPECT_EQ(checkpoints.steps(), (std::vector<int64_t>{20, 50, 60}));
  EXPECT_EQ(checkpoints.latest()->filename(), "step-00000060");
  EXPECT_EQ(read_file(*checkpoints.latest() / "a"), "content");
}

TEST_F(CheckpointsTest, AFailedSaveLeavesTheOldOnesAndNothingElse) {
  Checkpoints checkpoints(output_, 2, {});
  checkpoints.save(1, write);
  const auto broken = [](const std::filesystem::path& folder) {
    write_file(folder / "a", "half");
    fail("no space left");
  };
  EXPECT_THROW(checkpoints.save(2, broken), Error);
  EXPECT_EQ(checkpoints.steps(), std::vector<int64_t>{1});
  int64_t entries = 0;
  for (const auto& entry : std::filesystem::directory_iterator(output_ / "checkpoints"))
    entries += entry.exists() ? 1 : 0;
  EXPECT_EQ(entries, 1);
}

TEST_F(CheckpointsTest, OpeningRemovesLeftovers) {
  { Checkpoints(output_, 2, {}).save(1, write); }
  std::filesystem::create_directories(output_ / "checkpoints" / "step-00000002.tmp.77");
  std::filesystem::create_directories(output_ / "checkpoints" / "removed-0");
  Checkpoints checkpoints(output_, 2, {});
  EXPECT_EQ(checkpoints.steps(), std::vector<int64_t>{1});
  EXPECT_FALSE(std::filesystem::exists(output_ / "checkpoints" / "removed-0"));
  EXPECT_FALSE(std::filesystem::exists(output_ / "checkpoints" / "step-00000002.tmp.77"));
}

TEST_F(CheckpointsTest, LinksAreReplaced) {
  Checkpoints checkpoints(output_, 2, {});
  checkpoints.save(1, write);
  checkpoints.save(2, write);
  checkpoints.link("final", 1);
  checkpoints.link("final", 2);
  EXPECT_EQ(std::filesystem::read_symlink(output_ / "final"), "checkpoints/step-00000002");
  EXPECT_EQ(read_file(output_ / "final" / "a"), "content");
}

}  // namespace
}  // namespace gsa
