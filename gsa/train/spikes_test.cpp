#include "gsa/train/spikes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gsa {
namespace {

double wave(int step) {
  return step % 2 == 0 ? 2.0 : 1.0;
}  // mean 1.5, standard deviation 0.5

TEST(SpikeScore, ComparesWithThePrevious128Values) {
  SpikeScore score;
  for (int step = 0; step < 128; ++step) EXPECT_FALSE(score.add(wave(step)));
  EXPECT_FALSE(score.add(4.5));  // exactly mean + 6 sigma is not above it
  SpikeScore other;
  for (int step = 0; step < 128; ++step) other.add(wave(step));
  EXPECT_TRUE(other.add(4.51));
  EXPECT_EQ(other.spikes(), 1);
  EXPECT_DOUBLE_EQ(other.score(), 1.0 / 129.0);
}

TEST(SpikeScore, NeedsAFullWindow) {
  SpikeScore score;
  for (int step = 0; step < 127; ++step) score.add(1.0);
  EXPECT_FALSE(score.add(1e9));
}

TEST(SpikeScore, NotFiniteIsASpikeAndLeavesTheWindowAlone) {
  SpikeScore score;
  for (int step = 0; step < 128; ++step) score.add(wave(step));
  EXPECT_TRUE(score.add(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_FALSE(score.add(4.5));
}

TEST(SpikeScore, StateSurvivesAsText) {
  SpikeScore score;
  for (int step = 0; step < 200; ++step) score.add(std::sqrt(2.0) * step);
  SpikeScore again;
  again.set_state(parse_json(score.state().dump(), "state"));
  EXPECT_EQ(score.state(), again.state());
  EXPECT_EQ(score.add(5000.0), again.add(5000.0));
  EXPECT_EQ(score.state(), again.state());
}

}  // namespace
}  // namespace gsa
