#include "gsa/train/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>

#include "gsa/base/file.h"
#include "gsa/train/tensorboard.h"

namespace gsa {
namespace {

std::filesystem::path fresh_folder(const char* name) {
  auto folder = std::filesystem::temp_directory_path() /
                (std::string("gsa_metrics_") + name + std::to_string(::getpid()));
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

Json record(int64_t step) {
  return Json{
      {"step", step}, {"time", 1000.5 + double(step)}, {"stage", "dense"}, {"loss", 1.0 / double(step)}};
}

TEST(TensorBoard, ChecksumOfTheStandardExample) {
  // CRC-32C of "123456789" is 0xE3069283 (RFC 3720's polynomial); masked: rotated right by 15 plus a
  // constant.
  EXPECT_EQ(masked_crc32c("123456789"), ((0xE3069283u >> 15) | (0xE3069283u << 17)) + 0xA282EAD8u);
}

TEST(MetricsLog, ResumingDropsLaterAndBrokenLines) {
  const auto folder = fresh_folder("resume");
  {
    MetricsLog log(folder, 0);
    for (int64_t step = 1; step <= 5; ++step) log.append(record(step));
  }
  write_file(folder / "metrics.jsonl", read_file(folder / "metrics.jsonl") + "{\"step\": 2, \"lo");
  MetricsLog log(folder, 3);
  log.append(record(4));
  std::string expected;
  for (int64_t step = 1; step <= 4; ++step) expected += record(step).dump() + "\n";
  EXPECT_EQ(read_file(folder / "metrics.jsonl"), expected);
  std::filesystem::remove_all(folder);
}

TEST(MetricsLog, TensorBoardReadsItsFiles) {
  const auto folder = fresh_folder("board");
  {
    MetricsLog log(folder, 0);
    for (int64_t step = 1; step <= 3; ++step) log.append(record(step));
  }
  { MetricsLog resumed(folder, 2); }
  const std::string command =
      std::string(GSA_PYTHON) +
      " -c \"from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as E\n"
      "e = E('" +
      (folder / "tensorboard").string() +
      "'); e.Reload()\n"
      "assert e.Tags()['scalars'] == ['train/loss'], e.Tags()\n"
      "got = [(s.step, s.wall_time, s.value) for s in e.Scalars('train/loss')]\n"
      "assert got == [(1, 1001.5, 1.0), (2, 1002.5, 0.5)], got\"";
  EXPECT_EQ(std::system(command.c_str()), 0);
  std::filesystem::remove_all(folder);
}

TEST(MetricsLog, AFullDiskDelaysLinesButLosesNone) {
  const auto folder = fresh_folder("full");
  MetricsLog log(folder, 0);
  log.append(record(1));
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit tight = before;
  tight.rlim_cur = std::filesystem::file_size(folder / "metrics.jsonl") + 10;
  setrlimit(RLIMIT_FSIZE, &tight);
  log.append(record(2));
  EXPECT_TRUE(log.behind());
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  log.append(record(3));
  EXPECT_FALSE(log.behind());
  EXPECT_EQ(read_file(folder / "metrics.jsonl"),
            record(1).dump() + "\n" + record(2).dump() + "\n" + record(3).dump() + "\n");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace gsa
