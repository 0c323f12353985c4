#pragma once
// Random inputs whose seed a failing test prints.

#include <cstdint>
#include <random>

namespace gsa::testing {

/// The seed of this test run: the environment variable GSA_SEED, else drawn from the clock. Printed once.
/// Finds the GPU first, if there is one: ATen, seeded before it is found, would never see it.
uint64_t run_seed();

/// A generator for one property-test case; `case_index` makes cases differ, the printed run seed makes them
/// repeatable. Seeds ATen's generators too, so that a case can be repeated without those before it.
std::mt19937_64 case_generator(uint64_t case_index);

/// A uniform integer in [low, high].
int64_t draw(std::mt19937_64& generator, int64_t low, int64_t high);

}  // namespace gsa::testing
