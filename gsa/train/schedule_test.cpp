#include "gsa/train/schedule.h"

#include <gtest/gtest.h>

namespace gsa {
namespace {

TEST(LearningRateSchedule, WarmsUpLinearlyAndEndsAtTheFinalRatio) {
  const LearningRateSchedule schedule{.peak = 2.0, .warmup_steps = 4, .steps = 15, .final_ratio = 0.1};
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.5);
  EXPECT_DOUBLE_EQ(schedule.at(3), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(4), 2.0);
  EXPECT_DOUBLE_EQ(schedule.at(9), 1.1);  // half of the cosine
  EXPECT_DOUBLE_EQ(schedule.at(14), 0.2);
  for (int64_t step = 5; step < 15; ++step) EXPECT_LT(schedule.at(step), schedule.at(step - 1));
}

TEST(LearningRateSchedule, OneStepAndNoWarmUp) {
  EXPECT_DOUBLE_EQ((LearningRateSchedule{.peak = 3.0, .steps = 1}.at(0)), 3.0);
}

}  // namespace
}  // namespace gsa
