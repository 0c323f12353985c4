#include "gsa/testing/cuda_emulation_mma.h"
#include "gsa/testing/cuda_emulation_sm90.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/reduction.h"
#include "gsa/cuda/tma.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/testing/random.h"

namespace gsa {
namespace {

std::string failure_of(int threads, const std::function<void()>& kernel) {
  try {
    emulation::run_grid(1, threads, 0, kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "none";
}

TEST(CudaEmulation, BlocksShareMemoryAndWait) {
  std::vector<int> sums(3, 0);
  emulation::run_grid(3, 96, 96 * sizeof(int), [&] {
    int* values = &cuda::shared_memory<int>();
    const int mine = static_cast<int>(threadIdx.x);
    values[mine] = mine + static_cast<int>(blockIdx.x);
    __syncthreads();
    if (mine == 0)
      for (int i = 95; i >= 0; --i) sums[blockIdx.x] += values[i];
  });
  EXPECT_EQ(sums, (std::vector<int>{4560, 4656, 4752}));
}

TEST(CudaEmulation, Collectives) {
  std::vector<int> before(64), best(64), ballots(64);
  emulation::run_grid(1, 64, 0, [&] {
    const int i = static_cast<int>(threadIdx.x);
    before[i] = cuda::warp_exclusive_sum(i);
    best[i] = __reduce_max_sync(0xffffffffu, i ^ 5);
    ballots[i] = static_cast<int>(__ballot_sync(0xffffffffu, i % 8 == 3));
  });
  EXPECT_EQ(before[3], 3);
  EXPECT_EQ(before[34], 65);
  EXPECT_EQ(best[0], 31);
  EXPECT_EQ(best[63], 63);
  EXPECT_EQ(ballots[17], 0x08080808);
}

TEST(CudaEmulation, BlocksOfACooperativeGridWaitForEachOther) {
  unsigned counter = 0, wrong = 0;
  const auto kernel = [&](unsigned arrivals) {
    auto& value = *reinterpret_cast<unsigned*>(emulation::static_shared_base(sizeof(unsigned)));
    if (threadIdx.x == 0) {
      value = blockIdx.x;
      cuda::arrive_release(&counter);
      cuda::wait_acquire(&counter, arrivals);
    }
    __syncthreads();
    wrong += value != blockIdx.x || counter != 4;
  };
  emulation::run_cooperative_grid(4, 64, 0, [&] { kernel(4); });
  EXPECT_EQ(counter, 4u);
  EXPECT_EQ(wrong, 0u);
  counter = 0;
  std::string failure = "none";
  try {
    emulation::run_cooperative_grid(2, 32, 0, [&] { kernel(3); });
  } catch (const std::runtime_error& error) {
    failure = error.what();
  }
  EXPECT_EQ(failure, "emulated kernel: deadlock, 32 threads of block 0 wait for ever");
}

TEST(CudaEmulation, BlocksPollWhatOthersWrite) {
  unsigned long long words[3] = {1, 0, 0};
  const auto kernel = [&](unsigned from) {  // each waits for the one before
    if (threadIdx.x != 5) return;
    while (cuda::load_relaxed(words + (blockIdx.x + from) % 3) == 0) cuda::poll_again();
    cuda::store_relaxed(words + blockIdx.x, blockIdx.x + 1);
  };
  emulation::run_cooperative_grid(3, 32, 0, [&] { kernel(blockIdx.x == 0 ? 0 : 2); });
  EXPECT_EQ(words[2], 3u);
  words[0] = words[1] = words[2] = 0;
  EXPECT_THROW(emulation::run_cooperative_grid(3, 32, 0, [&] { kernel(2); }), std::runtime_error);
}

TEST(CudaEmulation, WarpProducts) {
  auto generator = testing::case_generator(1);
  std::vector<int> a(256), b(128), products(128);  // 16 x 16, 16 x 8
  for (int& x : a) x = static_cast<int>(testing::draw(generator, -8, 8));
  for (int& x : b) x = static_cast<int>(testing::draw(generator, -8, 8));
  const auto pair = [](int first, int second) {
    return cuda::pack_f16(static_cast<float>(first), static_cast<float>(second));
  };
  emulation::run_grid(1, 32, 0, [&] {
    const int group = static_cast<int>(threadIdx.x) / 4, k = static_cast<int>(threadIdx.x) % 4 * 2;
    const auto rows = [&](int row, int column) {
      return pair(a[row * 16 + column], a[row * 16 + column + 1]);
    };
    const auto columns = [&](int row) { return pair(b[row * 8 + group], b[(row + 1) * 8 + group]); };
    float c[4] = {1, 1, 1, 1};
    cuda::mma_f16(c, rows(group, k), rows(group + 8, k), rows(group, k + 8), rows(group + 8, k + 8),
                  columns(k), columns(k + 8));
    for (int i = 0; i < 4; ++i) products[(group + i / 2 * 8) * 8 + k + i % 2] = static_cast<int>(c[i]);
  });
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int expected = 1;
      for (int k = 0; k < 16; ++k) expected += a[row * 16 + k] * b[k * 8 + column];
      EXPECT_EQ(products[row * 8 + column], expected) << row << " " << column;
    }
}

TEST(CudaEmulation, ReportsWhoWaitsForEverAndWhoMeetsWrongly) {
  EXPECT_EQ(failure_of(64,
                       [] {
                         if (threadIdx.x != 7) __syncthreads();
                       }),
            "emulated kernel: deadlock, 63 threads of block 0 wait for ever");
  EXPECT_EQ(failure_of(32,
                       [] {
                         if (threadIdx.x < 3) __syncwarp();
                         __any_sync(0xffffffffu, true);
                       }),
            "emulated kernel: lanes of a warp meet in different collectives");
  EXPECT_EQ(failure_of(32, [] { cuda::named_barrier<32>(1); }), "none");
}

// 64 x 16 rows times 64 keys of 64 or 32 columns, loaded by the copy engine, past the tensor's end too.
TEST(CudaEmulation, ProductsOfLoadedBoxes) {
  auto generator = testing::case_generator(0);
  for (const int dim : {64, 32}) {
    const int keys = 50;
    std::vector<uint16_t> rows(size_t{64} * dim), columns(size_t{keys} * dim);
    const auto whole_number = [&] {  // bf16 holds -4 .. 4 exactly
      return static_cast<uint16_t>(__float_as_uint(static_cast<float>(testing::draw(generator, -4, 4))) >>
                                   16);
    };
    for (uint16_t& x : rows) x = whole_number();
    for (uint16_t& x : columns) x = whole_number();
    CUtensorMap map;
    const uint64_t sizes[3] = {static_cast<uint64_t>(dim), keys, 1};
    const uint64_t strides[2] = {static_cast<uint64_t>(dim) * 2, static_cast<uint64_t>(keys) * dim * 2};
    const uint32_t box[3] = {static_cast<uint32_t>(dim), 64, 1};
    cuda::make_tensor_map_bf16(&map, columns.data(), 3, sizes, strides, box,
                               dim == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B);
    struct Shared {
      alignas(1024) uint8_t keys[64 * 64 * 2];
      uint64_t full;
    };
    std::vector<float> products(size_t{64} * 64);
    emulation::run_grid(1, 128, sizeof(Shared), [&] {
      auto& shared = cuda::shared_memory<Shared>();
      if (threadIdx.x == 0) cuda::mbarrier_init(&shared.full, 1);
      __syncthreads();
      if (threadIdx.x == 0) {
        cuda::mbarrier_arrive_expect(&shared.full, 64 * dim * 2);
        cuda::tma_load_3d(shared.keys, &map, &shared.full, 0, 0, 0);
      }
      cuda::mbarrier_wait(&shared.full, 0);
      const int row = static_cast<int>(threadIdx.x) / 32 * 16 + emulation::lane() / 4,
                c = emulation::lane() % 4;
      float d[32];
      for (int k = 0; k < dim / 16; ++k) {
        uint32_t a[4];
        for (int i = 0; i < 4; ++i)
          std::memcpy(&a[i], &rows[(row + i % 2 * 8) * dim + 16 * k + 2 * c + i / 2 * 8], 4);
        const uint64_t address = cuda::mbarrier_address(shared.keys) + 32 * k;
        const uint64_t descriptor =
            uint64_t{dim == 64 ? 1u : 2u} << 62 | uint64_t(dim * 16 >> 4) << 32 | address >> 4;
        cuda::Wgmma<64>::rs<false>(d, a, descriptor, k > 0);
      }
      cuda::wgmma_commit();
      cuda::wgmma_wait<0>();
      for (int i = 0; i < 32; ++i) products[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + 2 * c + i % 2] = d[i];
    });
    for (int i = 0; i < 64; ++i)
      for (int j = 0; j < 64; ++j) {
        float expected = 0;
        for (int k = 0; k < dim && j < keys; ++k)
          expected += emulation::bf16_value(rows[i * dim + k]) * emulation::bf16_value(columns[j * dim + k]);
        ASSERT_EQ(products[i * 64 + j], expected) << dim << ": " << i << ", " << j;
      }
  }
}

}  // namespace
}  // namespace gsa
