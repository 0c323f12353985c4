#include "gsa/testing/random.h"

#include <ATen/Context.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "gsa/base/device.h"

namespace gsa::testing {

uint64_t run_seed() {
  static const uint64_t seed = [] {
    cuda_available();  // before ATen's generators are seeded, which makes it remember that there is no CUDA
    const char* given = std::getenv("GSA_SEED");
    const uint64_t value = given != nullptr
                               ? std::strtoull(given, nullptr, 10)
                               : std::chrono::steady_clock::now().time_since_epoch().count() % 1000000;
    std::printf("seed %llu (repeat with GSA_SEED=%llu)\n", static_cast<unsigned long long>(value),
                static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

std::mt19937_64 case_generator(uint64_t case_index) {
  std::seed_seq sequence{run_seed(), case_index};
  at::manual_seed(run_seed() ^ (case_index << 32));
  return std::mt19937_64(sequence);
}

int64_t draw(std::mt19937_64& generator, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

}  // namespace gsa::testing
