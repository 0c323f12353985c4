#pragma once
// What gsa/cuda/{mbarrier,tma,wgmma}.h wrap, emulated on the CPU (see cuda_emulation.h): barrier objects, the
// copy engine's loads and warpgroup products with A in registers, both with swizzled shared memory.

#include <algorithm>
#include <vector>

#include "gsa/testing/cuda_emulation.h"

// CUDA's own names, words of any type, and offsets that fit a block's shared memory.
// NOLINTBEGIN(bugprone-*,readability-identifier-naming)

namespace gsa {

enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_64B = 64, CU_TENSOR_MAP_SWIZZLE_128B = 128 };

struct CUtensorMap {
  const uint8_t* base;
  int rank;
  int64_t sizes[5];
  int64_t strides[5];  // bytes
  int box[5];
  CUtensorMapSwizzle swizzle;
};

namespace emulation {

// A barrier object fills its 64 bits: bytes that the phase still waits for, then phase parity, expected and
// pending arrivals.
struct BarrierObject {
  int32_t bytes;
  uint32_t state;

  static constexpr uint32_t kParity = 1u << 31;

  static BarrierObject& at(uint64_t* word) { return *reinterpret_cast<BarrierObject*>(word); }
  void complete_phase_if_due() {
    if ((state & 0xffff) == 0 && bytes == 0) state = (state ^ kParity) | (state >> 16 & 0x7fff);
  }
  void arrive() {
    if ((state & 0xffff) == 0) fail("one arrival too many at an mbarrier");
    --state;
    complete_phase_if_due();
  }
};

// Swizzling permutes the 16-byte chunks of a row by the row's number, both read from the address.
inline uint32_t swizzled(uint32_t address, int row_bytes) {
  return address ^ ((address >> 7 & (row_bytes == 128 ? 7u : 3u)) << 4);
}

// One box, row by row, zeros outside the tensor.
inline void copy_box(uint32_t to, const CUtensorMap& map, const int* first) {
  const int row_bytes = map.box[0] * 2;
  if (row_bytes != map.swizzle) fail("a box whose rows are not the swizzle's");
  int at[5] = {};
  for (uint32_t offset = 0;; offset += row_bytes) {
    const uint8_t* row = map.base;
    bool inside = true;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t index = first[d] + at[d];
      inside &= index >= 0 && index < map.sizes[d];
      row += index * map.strides[d];
    }
    for (int element = 0; element < map.box[0]; ++element) {
      const int64_t index = first[0] + element;
      uint16_t bits = 0;
      if (inside && index >= 0 && index < map.sizes[0]) std::memcpy(&bits, row + 2 * index, 2);
      std::memcpy(shared_base() + swizzled(to + offset + 2 * element, row_bytes), &bits, 2);
    }
    int d = 1;
    while (d < map.rank && ++at[d] == map.box[d]) at[d++] = 0;
    if (d == map.rank) return;
  }
}

// The copy engine takes its time: until a load lands, its place holds NaN.
inline void load_box(void* shared, const CUtensorMap* map, uint64_t* full, const std::vector<int>& first) {
  int bytes = 2;
  for (int d = 0; d < map->rank; ++d) bytes *= map->box[d];
  std::memset(shared, 0xff, bytes);
  defer([=, map = *map] {
    copy_box(static_cast<uint32_t>(__cvta_generic_to_shared(shared)), map, first.data());
    BarrierObject& barrier = BarrierObject::at(full);
    barrier.bytes -= bytes;
    barrier.complete_phase_if_due();
  });
}

inline void load_bytes(void* shared, const void* global, uint32_t bytes, uint64_t* full) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | bytes) % 16 != 0)
    fail("a bulk load of what is not in whole sixteens of bytes");
  std::memset(shared, 0xff, bytes);
  defer([=] {
    std::memcpy(shared, global, bytes);
    BarrierObject& barrier = BarrierObject::at(full);
    barrier.bytes -= static_cast<int32_t>(bytes);
    barrier.complete_phase_if_due();
  });
}

// A product that was issued and not yet waited for.
struct Product {
  float* d;
  int columns;
  uint32_t a[4];
  uint64_t b;
  bool accumulate;
};

inline std::vector<Product>& issued_products() {
  static std::vector<std::vector<Product>> of_thread(1024);
  return of_thread[threadIdx.x];
}

// This thread's share of a product; `quad` are the four threads that hold its rows of A.
inline void multiply(const Product& mine, const Product* const (&quad)[4]) {
  const int row_bytes = mine.b >> 62 == 1 ? 128 : 64;
  const auto start = static_cast<uint32_t>(mine.b & 0x3fff) << 4;
  const auto stride = static_cast<uint32_t>(mine.b >> 32 & 0x3fff) << 4;
  float a[2][16];
  for (int k = 0; k < 16; ++k)
    for (int row = 0; row < 2; ++row) {
      const uint32_t pair = quad[k % 8 / 2]->a[2 * (k / 8) + row];
      a[row][k] = bf16_value(static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16));
    }
  for (int i = 0; i < mine.columns / 4; ++i) {
    const int column = 8 * (i / 2) + 2 * (lane() & 3) + (i & 1);
    uint16_t b[16];
    for (int chunk = 0; chunk < 2; ++chunk)
      std::memcpy(b + 8 * chunk,
                  shared_base() +
                      swizzled(start + column / 8 * stride + column % 8 * row_bytes + 16 * chunk, row_bytes),
                  16);
    for (int row = 0; row < 2; ++row) {
      float& d = mine.d[4 * (i / 2) + 2 * row + (i & 1)];
      float sum = mine.accumulate ? d : 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * bf16_value(b[k]);
      d = sum;
    }
  }
}

}  // namespace emulation

namespace cuda {

// ---- gsa/cuda/mbarrier.h

inline uint32_t mbarrier_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  emulation::BarrierObject::at(barrier) = {0, arrivals << 16 | arrivals};
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier) {
  emulation::BarrierObject::at(barrier).arrive();
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  emulation::BarrierObject::at(barrier).bytes += static_cast<int32_t>(bytes);
  emulation::BarrierObject::at(barrier).arrive();
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  using emulation::BarrierObject;
  emulation::wait_while(&BarrierObject::at(barrier).state, BarrierObject::kParity, parity << 31);
}

// ---- gsa/cuda/tma.h

inline cudaError_t make_tensor_map_bf16(CUtensorMap* map, const void* base, int rank, const uint64_t* sizes,
                                        const uint64_t* strides_bytes, const uint32_t* box,
                                        CUtensorMapSwizzle swizzle) {
  *map = {static_cast<const uint8_t*>(base), rank, {}, {2}, {}, swizzle};
  std::copy(sizes, sizes + rank, map->sizes);
  std::copy(strides_bytes, strides_bytes + rank - 1, map->strides + 1);
  std::copy(box, box + rank, map->box);
  return cudaSuccess;
}
inline void tma_prefetch_map(const CUtensorMap*) {}
inline void tma_load_3d(void* shared, const CUtensorMap* map, uint64_t* full, int c0, int c1, int c2) {
  emulation::load_box(shared, map, full, {c0, c1, c2});
}
inline void tma_load_4d(void* shared, const CUtensorMap* map, uint64_t* full, int c0, int c1, int c2,
                        int c3) {
  emulation::load_box(shared, map, full, {c0, c1, c2, c3});
}

inline void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* full) {
  emulation::load_bytes(shared, global, bytes, full);
}

// ---- gsa/cuda/wgmma.h

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kInFlight>
void wgmma_wait() {
  static_assert(kInFlight == 0, "only waiting for all products is emulated");
  auto& mine = emulation::issued_products();
  const uint64_t* all = emulation::warp_gather(emulation::to_word(&mine), 'p');
  const std::vector<emulation::Product>* quad[4];
  for (int i = 0; i < 4; ++i)
    quad[i] = emulation::from_word<std::vector<emulation::Product>*>(all[(emulation::lane() & ~3) + i]);
  for (size_t i = 0; i < mine.size(); ++i)
    emulation::multiply(mine[i], {&(*quad[0])[i], &(*quad[1])[i], &(*quad[2])[i], &(*quad[3])[i]});
  emulation::warp_gather(0, 'q');  // the quad's other threads have read this one's A
  mine.clear();
}
template <int kCount>
void wgmma_pin(float (&)[kCount]) {}
inline void fence_async_proxy() {}
template <int kRegisters>
void release_registers() {}
template <int kRegisters>
void acquire_registers() {}

template <int N>
struct Wgmma {
  template <bool kTransposeB>
  static void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(!kTransposeB);
    emulation::issued_products().push_back({d, N, {a[0], a[1], a[2], a[3]}, b, accumulate});
  }
};

}  // namespace cuda
}  // namespace gsa

// NOLINTEND(bugprone-*,readability-identifier-naming)
