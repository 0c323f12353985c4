#include "gsa/base/file.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include "gsa/base/error.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  fs::path folder_ = fs::temp_directory_path() / ("gsa_file_test_" + std::to_string(::getpid()));
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
};

TEST_F(FileTest, WriteReplacesWhole) {
  write_file(folder_ / "a", "first");
  write_file(folder_ / "a", "second");
  EXPECT_EQ(read_file(folder_ / "a"), "second");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(FileTest, AbandonedWriteLeavesTheOldFileAndNothingElse) {
  write_file(folder_ / "a", "old");
  { AtomicFile(folder_ / "a").write("half"); }
  EXPECT_EQ(read_file(folder_ / "a"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(FileTest, ErrorsNameTheFile) {
  EXPECT_THROW(write_file("/dev/full/x", "y"), Error);
  EXPECT_THROW(read_file(folder_ / "missing"), Error);
  EXPECT_THROW(MappedFile(folder_ / "missing"), Error);
}

TEST_F(FileTest, MapsEmptyAndFull) {
  write_file(folder_ / "empty", "");
  write_file(folder_ / "full", "abc");
  EXPECT_EQ(MappedFile(folder_ / "empty").bytes().size(), 0u);
  EXPECT_EQ(static_cast<char>(MappedFile(folder_ / "full").bytes()[2]), 'c');
}

}  // namespace
}  // namespace gsa
