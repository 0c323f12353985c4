#include "gsa/train/progress.h"

#include <gtest/gtest.h>

namespace gsa {
namespace {

TEST(Progress, LineHoldsWhatAPersonAsksFor) {
  StepReport report;
  report.stage = "sparse";
  report.stage_step = 12;
  report.stage_steps = 400;
  report.loss = 3.14159;
  report.index_kl = 0.8124;
  report.index_share = 0.344;
  report.tokens_per_second = 1234.0;
  report.memory_bytes = int64_t{812} << 20;
  report.remaining_seconds = 200.2;
  EXPECT_EQ(progress_line(report),
            "sparse 12/400  loss 3.1416  KL 0.812 (34% of uniform)  1.2k tokens/s  812 MiB  ETA 3m20s");
  report.index_kl.reset();
  report.index_share.reset();
  EXPECT_EQ(progress_line(report), "sparse 12/400  loss 3.1416  1.2k tokens/s  812 MiB  ETA 3m20s");
}

TEST(Progress, Durations) {
  EXPECT_EQ(short_duration(12.4), "12s");
  EXPECT_EQ(short_duration(7505), "2h05m");
}

TEST(Progress, MemoryIsThatOfThisProcess) {
  EXPECT_GT(resident_memory(), 1 << 20);
}

}  // namespace
}  // namespace gsa
