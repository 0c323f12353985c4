// The ring of stages between the warps that gather keys and the warpgroups that attend them.
#pragma once

#include <cuda_bf16.h>

#include "gsa/cuda/cp_async.h"
#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/sparse_attention/sparse_attention_walk.h"

namespace gsa::sparse_attention {

struct Job {
  SparseAttentionParams p;
  Walks walks;
  Packing packing;
  int first, tiles;  // the places of this launch's tiles
};

template <int E>
struct Stages {
  static constexpr int kCount = E == 128 ? 5 : 8;
  static constexpr int kPanelBytes = 64 * 128;               // 64 rows of 64 bf16
  static constexpr int kTileBytes = kPanelBytes * (E / 64);  // 64 rows of E
  static constexpr int kMaskBytes = kMaskWords * 8;
  static constexpr int kRing = kMaxSets * kTileBytes;  // after the queries
  static constexpr int kMasks = kRing + kCount * 2 * kTileBytes;
  static constexpr int kBarriers = kMasks + kCount * kMaskBytes;
  static constexpr int kWork = kBarriers + 2 * kCount * 8;
  static constexpr int kTurn = kWork + 24;
  static constexpr int kBytes = kTurn + 8;
};

// What is the same in a warp, so that the compiler sees it.
__device__ __forceinline__ int uniform(int x) {
  return __shfl_sync(0xffffffffu, x, 0);
}

// Which tile a thread block takes after which: the first by its number, the others as they come, so that none
// idles while tiles are left. When a tile's keys are gathered, one thread takes the next from a counter in
// global memory, and leaves its number here for all threads to read once.
struct Work {
  struct Shared {
    uint64_t full, empty;
    int item;
  };
  Shared* shared;
  int32_t* counter;
  uint32_t parity = 0;

  __device__ static void start(Shared* shared) {
    cuda::mbarrier_init(&shared->full, 1);
    cuda::mbarrier_init(&shared->empty, blockDim.x);
  }

  __device__ void take() const {
    const int item = static_cast<int>(gridDim.x) + atomicAdd(counter, 1);
    cuda::mbarrier_wait(&shared->empty, parity ^ 1);
    shared->item = item;
    cuda::mbarrier_arrive(&shared->full);
  }

  __device__ int next() {
    cuda::mbarrier_wait(&shared->full, parity);
    const int item = *static_cast<volatile int*>(&shared->item);
    cuda::mbarrier_arrive(&shared->empty);
    parity ^= 1;
    return uniform(item);
  }
};

// One head group of one tile (or a part of it).
struct Tile {
  int batch, first_query, kv_head, part;
  int index;   // among all tiles
  int row;     // of the walks, or of the shared rows
  int blocks;  // of 64 keys
  int keys;    // of a shared row
};

// How many items there are to work on: head groups (or parts) of this launch's tiles.
template <bool kSharedRow>
__device__ int count_items(const Job& job) {
  int tiles = job.tiles;
  if (!kSharedRow && job.walks.long_walks) tiles = min(tiles, job.walks.overflow[0] - job.first);
  return tiles * job.packing.parts * job.p.kv_heads;
}

template <bool kSharedRow>
__device__ Tile locate(const Job& job, int item, int items) {
  const SparseAttentionParams& p = job.p;
  Tile tile;
  // Last tiles first: they have the most keys, and the short ones fill the end.
  const int per_tile = job.packing.parts * p.kv_heads;
  tile.row = (items - 1 - item) / per_tile;
  tile.index = kSharedRow ? tile.row : tile_at(job.walks, job.first + tile.row);
  tile.part = item % per_tile % job.packing.parts;
  tile.kv_head = item % per_tile / job.packing.parts;
  const int per_batch = tiles_of(p.queries, job.packing.queries);
  tile.batch = tile.index / per_batch;
  tile.first_query = tile.index % per_batch * job.packing.queries;
  if constexpr (kSharedRow) {
    tile.row = tile.batch * p.rows + tile.index % per_batch;
    tile.keys = min(p.counts[tile.row], p.capacity);
    tile.blocks = (tile.keys + kBlockKeys - 1) / kBlockKeys;
  } else {
    tile.blocks = uniform(job.walks.blocks[tile.row]);
  }
  return tile;
}

// Descriptors differ in their low word only.
template <int E>
__device__ __forceinline__ uint32_t descriptor_low(uint32_t address) {
  return uint32_t(cuda::wgmma_descriptor(address, Stages<E>::kPanelBytes, 1024));
}
__device__ __forceinline__ uint64_t whole(uint32_t descriptor) {
  return cuda::wgmma_descriptor(0, 0, 1024) | descriptor;
}

// A block of 64 keys in its stage.
struct Block {
  uint32_t key, value;         // descriptors
  const unsigned char* masks;  // masks of a walk, or the keys of a shared row
};

__device__ __forceinline__ void sync_warpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

inline constexpr int kTurnTries = 40;

// Only one warpgroup at a time should issue products, so that the softmax of the one runs beside the products
// of the other. A hint, not a lock: after a while a warpgroup goes on without its turn.
__device__ __forceinline__ void take_turn(int* turn, int warpgroup) {
  if (threadIdx.x % 128 == 0) {
    for (int tries = 0; tries < kTurnTries && atomicCAS_block(turn, 0, 1) != 0; ++tries) continue;
  }
  sync_warpgroup(warpgroup);
}

__device__ __forceinline__ void give_turn(int* turn) {
  if (threadIdx.x % 128 == 0) atomicExch_block(turn, 0);
}

// Whether it is so for all threads of the warpgroup, whose products are issued together.
__device__ __forceinline__ bool warpgroup_all(int warpgroup, bool x) {
  uint32_t all;
  asm volatile(
      "{\n"
      ".reg .pred mine, all;\n"
      "setp.ne.u32 mine, %1, 0;\n"
      "barrier.cta.red.and.pred all, %2, 128, mine;\n"
      "selp.u32 %0, 1, 0, all;\n"
      "}\n"
      : "=r"(all)
      : "r"(uint32_t(x)), "r"(warpgroup + 1)
      : "memory");
  return all != 0;
}

// Which of a walk's block of keys lies in a row of its stage. A thread holds columns 2 c + 8 j, + 1 of a
// product (c its lane modulo 4): these are keys 16 c + 2 j, + 1, so that it needs 16 bits in a row of a mask.
__device__ __forceinline__ int place_of(int row) {
  return row / 2 % 4 * 16 + row / 8 * 2 + row % 2;
}

template <int E, bool kSharedRow>
__device__ void gather(const Job& job, const Tile& tile, unsigned char* memory, uint64_t* full,
                       uint64_t* empty, cuda::RingPosition<Stages<E>::kCount>& ring) {
  using Layout = Stages<E>;
  constexpr int kChunks = E / 8, kRowsAtOnce = 128 / kChunks, kPasses = kBlockKeys / kRowsAtOnce;
  const SparseAttentionParams& p = job.p;
  int thread = threadIdx.x % 128;
  // Opaque: the compiler would keep all that follows from it in registers from tile to tile.
  asm volatile("" : "+r"(thread));
  const int lane = thread % 32;
  const int row = thread / kChunks, chunk = thread % kChunks;
  const auto* key = static_cast<const unsigned char*>(p.key) +
                    2 * (tile.batch * p.key_stride[0] + tile.kv_head * p.key_stride[2] + chunk * 8);
  const auto* value = static_cast<const unsigned char*>(p.value) +
                      2 * (tile.batch * p.value_stride[0] + tile.kv_head * p.value_stride[2] + chunk * 8);
  uint32_t key_bytes = static_cast<uint32_t>(2 * p.key_stride[1]);
  uint32_t value_bytes = static_cast<uint32_t>(2 * p.value_stride[1]);
  // Opaque: the compiler would add their parts again for every row.
  asm volatile("" : "+l"(key), "+l"(value), "+r"(key_bytes), "+r"(value_bytes));
  const int32_t* list = kSharedRow ? p.indices + int64_t(tile.row) * p.capacity
                                   : job.walks.keys + int64_t(tile.row) * job.walks.capacity;
  const uint64_t* masks =
      job.walks.masks + int64_t(tile.row) * (job.walks.capacity / kBlockKeys) * kMaskWords;
  const uint32_t target = cuda::shared_address(memory) + Layout::kRing + (chunk / 8) * Layout::kPanelBytes +
                          cuda::swizzle_128b(row, chunk % 8);
  const uint32_t mask_target = cuda::shared_address(memory) + Layout::kMasks;

  // Lane l of a warp reads the key of one of the 16 rows that the warp copies; the others get it by shuffle.
  constexpr int kRowsOfWarp = 32 / kChunks;
  const int my_row = thread / 32 * kRowsOfWarp + lane % kRowsOfWarp + lane % 16 / kRowsOfWarp * kRowsAtOnce;
  const int my_key = kSharedRow ? my_row : place_of(my_row);
  // Spare places hold a key that the tile has anyway: what comes of it is masked.
  const int last = kSharedRow ? tile.keys - 1 : tile.blocks * kBlockKeys - 1;
  const auto read_key = [&](int block) -> uint32_t { return list[min(block * kBlockKeys + my_key, last)]; };

  if (tile.blocks == 0) return;
  uint32_t next = read_key(0);
  for (int block = 0; block < tile.blocks; ++block, ring.advance()) {
    const uint32_t mine = next;
    next = read_key(block + 1);
    cuda::mbarrier_wait(&empty[ring.slot], ring.parity ^ 1);
    const uint32_t stage = target + ring.slot * 2 * Layout::kTileBytes;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const uint64_t from = __shfl_sync(0xffffffffu, mine, row % kRowsOfWarp + pass * kRowsOfWarp);
      const uint32_t to = stage + pass * kRowsAtOnce * 128;
      cuda::cp_async_16(to, key + from * key_bytes);
      cuda::cp_async_16(to + Layout::kTileBytes, value + from * value_bytes);
    }
    const uint32_t mask_stage = mask_target + ring.slot * Layout::kMaskBytes;
    if constexpr (kSharedRow) {
      const int i = block * kBlockKeys + thread;
      if (thread < kBlockKeys) cuda::cp_async_4(mask_stage + thread * 4, list + min(i, tile.keys - 1));
    } else {
      if (thread < kMaskWords / 2)
        cuda::cp_async_16(mask_stage + thread * 16, masks + int64_t(block) * kMaskWords + thread * 2);
    }
    cuda::cp_async_arrive(cuda::shared_address(&full[ring.slot]));
  }
}

// The ring as a warpgroup reads it: the blocks of all its tiles by number, freed in order.
template <int E>
struct Reader {
  using Layout = Stages<E>;
  const unsigned char* memory;
  uint64_t *full, *empty;
  int freed = 0;  // between tiles: the number of the next one's first block

  // Whether a block has arrived. Its stage must not hold an earlier one that is still needed.
  __device__ __forceinline__ bool filled(int block) const {
    return cuda::mbarrier_test(&full[block % Layout::kCount], block / Layout::kCount & 1);
  }

  __device__ __forceinline__ void wait(int block) const {
    cuda::mbarrier_wait(&full[block % Layout::kCount], block / Layout::kCount & 1);
  }

  // A block that has arrived, for products to read.
  __device__ __forceinline__ Block open(int block) const {
    const int slot = block % Layout::kCount;
    cuda::fence_async_proxy();
    const uint32_t key =
        descriptor_low<E>(cuda::shared_address(memory) + Layout::kRing + slot * 2 * Layout::kTileBytes);
    return {key, key + (Layout::kTileBytes >> 4), memory + Layout::kMasks + slot * Layout::kMaskBytes};
  }

  // Gives back the stages of all blocks before `block`, where that has arrived and so have they: a stage may
  // be given back only once it was filled, wanted or not. Every thread arrives for its own reads.
  __device__ __forceinline__ void free_arrived(int block) {
#pragma unroll 1
    for (; freed < block; ++freed) cuda::mbarrier_arrive(&empty[freed % Layout::kCount]);
  }

  // The same, as they arrive.
  __device__ __forceinline__ void free_before(int block) {
#pragma unroll 1
    for (; freed < block; ++freed) {
      wait(freed);
      cuda::mbarrier_arrive(&empty[freed % Layout::kCount]);
    }
  }
};

// Which blocks of a walk a set of rows visits, by the masks in their stages.
struct Visits {
  uint64_t queries;  // of the set
  int distance;      // where the masks of a block have that to the set's next one, in bytes

  __device__ __forceinline__ int first(int block, const unsigned char* stage) const {
    const uint64_t wanted = *reinterpret_cast<const uint64_t*>(stage + kBlockKeys * sizeof(uint64_t));
    return (wanted & queries) != 0 ? block : after(block, stage);
  }

  // The one after `block`; past the walk where there is none.
  __device__ __forceinline__ int after(int block, const unsigned char* stage) const {
    return block + stage[distance];
  }
};

}  // namespace gsa::sparse_attention
