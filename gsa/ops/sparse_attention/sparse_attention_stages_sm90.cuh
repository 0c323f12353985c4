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
  static constexpr int kTurn = kBarriers + 2 * kCount * 8;
  static constexpr int kBytes = kTurn + 8;
};

// What a thread block works on.
struct Tile {
  int batch, first_query, kv_head, part;
  int index;   // among all tiles
  int row;     // of the walks, or of the shared rows
  int blocks;  // of 64 keys
  int keys;    // of a shared row
};

// False where the thread block has no tile.
template <bool kSharedRow>
__device__ bool locate(const Job& job, Tile& tile) {
  const SparseAttentionParams& p = job.p;
  const int blocks_per_tile = job.packing.parts * p.kv_heads;
  // Last tiles first: they have the most keys, and the short ones fill the end.
  tile.row = job.tiles - 1 - static_cast<int>(blockIdx.x) / blocks_per_tile;
  tile.index = kSharedRow ? tile.row : tile_at(job.walks, job.first + tile.row);
  if (tile.index < 0) return false;
  tile.part = static_cast<int>(blockIdx.x) % blocks_per_tile % job.packing.parts;
  tile.kv_head = static_cast<int>(blockIdx.x) % blocks_per_tile / job.packing.parts;
  const int per_batch = tiles_of(p.queries, job.packing.queries);
  tile.batch = tile.index / per_batch;
  tile.first_query = tile.index % per_batch * job.packing.queries;
  if constexpr (kSharedRow) {
    tile.row = tile.batch * p.rows + tile.index % per_batch;
    tile.keys = min(p.counts[tile.row], p.capacity);
    tile.blocks = (tile.keys + kBlockKeys - 1) / kBlockKeys;
  } else {
    tile.blocks = job.walks.blocks[tile.row];
  }
  return true;
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
  int keys;                    // of a shared row: how many are left
};

// Which of a walk's block of keys lies in a row of its stage. A thread holds columns 2 c + 8 j, + 1 of a
// product (c its lane modulo 4): these are keys 16 c + 2 j, + 1, so that it needs 16 bits in a row of a mask.
__device__ __forceinline__ int place_of(int row) {
  return row / 2 % 4 * 16 + row / 8 * 2 + row % 2;
}

template <int E, bool kSharedRow>
__device__ void gather(const Job& job, const Tile& tile, unsigned char* memory, uint64_t* full,
                       uint64_t* empty) {
  using Layout = Stages<E>;
  constexpr int kChunks = E / 8, kRowsAtOnce = 128 / kChunks, kPasses = kBlockKeys / kRowsAtOnce;
  const SparseAttentionParams& p = job.p;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int row = thread / kChunks, chunk = thread % kChunks;
  const auto* key = static_cast<const unsigned char*>(p.key) +
                    2 * (tile.batch * p.key_stride[0] + tile.kv_head * p.key_stride[2] + chunk * 8);
  const auto* value = static_cast<const unsigned char*>(p.value) +
                      2 * (tile.batch * p.value_stride[0] + tile.kv_head * p.value_stride[2] + chunk * 8);
  // Opaque: the compiler would add their parts again for every row.
  asm volatile("" : "+l"(key), "+l"(value));
  const uint32_t key_bytes = static_cast<uint32_t>(2 * p.key_stride[1]);
  const uint32_t value_bytes = static_cast<uint32_t>(2 * p.value_stride[1]);
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
  cuda::RingPosition<Layout::kCount> ring;
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

// The ring as a warpgroup reads it: blocks by number, freed in order.
template <int E, bool kSharedRow>
struct Reader {
  using Layout = Stages<E>;
  const unsigned char* memory;
  uint64_t *full, *empty;
  int blocks, keys;
  int freed = 0;

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
    return {key, key + (Layout::kTileBytes >> 4), memory + Layout::kMasks + slot * Layout::kMaskBytes,
            keys - block * kBlockKeys};
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

// Which blocks of a walk a set of rows visits.
struct Visits {
  const uint64_t* masks;  // of the walk, in global memory
  uint64_t queries;       // of the set
  int distance;           // where the masks of a block have that to the set's next one, in bytes
  int blocks;

  // `blocks` where there is none.
  __device__ int first() const {
    int block = 0;
    while (block < blocks && (masks[block * kMaskWords + kBlockKeys] & queries) == 0) ++block;
    return block;
  }

  // The one after `block`, given the masks of its stage.
  __device__ __forceinline__ int after(int block, const unsigned char* stage) const {
    return block + stage[distance];
  }
};

}  // namespace gsa::sparse_attention
