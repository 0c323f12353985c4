// The fused decode kernel's attention to a part's own tokens. Slots of four warps, one a group, take tiles of
// up to 16 tokens, whose keys and values of all groups are brought to shared memory.
#pragma once

#include "gsa/cuda/cp_async.h"
#include "gsa/cuda/launch.h"
#include "gsa/cuda/mma.h"
#include "gsa/cuda/reduction.h"
#include "gsa/ops/sparse_attention/sparse_attention_decode_softmax.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_list.cuh"

namespace gsa::sparse_decode {

// One row's keys and values of all groups.
struct Tokens {
  const char *key, *value;
};

// By a slot's first warp: asks the copy engine for a tile's keys and values, a token's 1 KB at once.
__device__ __forceinline__ void request_tile(State& shared, char* tiles, const Tokens& tokens,
                                             const List& list, int tile) {
  const int lane = threadIdx.x & 31, slot = static_cast<int>(threadIdx.x) / 32 / kGroups, at = lane % kTile;
  const int count = list.count(tile);
  if (count == 0) return;
  if (lane == 0) cuda::mbarrier_arrive_expect(shared.arrived + slot, count * 2 * kTokenBytes);
  __syncwarp();
  if (at >= count) return;
  const int64_t position = list.positions[tile * list.each + at];
  cuda::bulk_load(tiles + slot * kTileBytes + lane * kRowBytes,
                  (lane < kTile ? tokens.key : tokens.value) + position * kTokenBytes, kTokenBytes,
                  shared.arrived + slot);
}

// By each of a slot's warps for its own group: the same through the load and store units, where a part has so
// few tokens that a copy engine for all of them would be slow.
__device__ __forceinline__ void copy_tile(char* tiles, const Tokens& tokens, const List& list, int tile) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, slot = warp / kGroups;
  const int count = list.count(tile), offset = warp % kGroups * kDim * 2 + lane % 16 * 16;
  if (count == 0) return;
  const uint32_t to = cuda::shared_address(tiles + slot * kTileBytes + offset);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < kTile; i += 2) {
      const int row = i + lane / 16;
      if (i >= count) break;
      if (row >= count) continue;
      const int64_t position = list.positions[tile * list.each + row];
      cuda::cp_async_16(to + (half * kTile + row) * kRowBytes,
                        (half ? tokens.value : tokens.key) + position * kTokenBytes + offset);
    }
  cuda::cp_async_commit();
}

// S^T = K Q^T: lane (g, q) gets tokens g, g + 8 and heads 2q, 2q + 1 (zero beyond the group's).
__device__ __forceinline__ void multiply_keys(float (&logits)[4], const char* keys, const char* query) {
  const int lane = threadIdx.x & 31;
  const bool there = lane / 4 < kGroupHeads;  // columns beyond are zero
  const char* row = keys + lane % 16 * kRowBytes + lane / 16 * 16;
  logits[0] = logits[1] = logits[2] = logits[3] = 0;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    unsigned a[4];
    cuda::load_matrices(a, row + i * 32);
    const unsigned b0 = there ? *reinterpret_cast<const unsigned*>(query + i * 32) : 0;
    const unsigned b1 = there ? *reinterpret_cast<const unsigned*>(query + i * 32 + 16) : 0;
    cuda::mma_bf16(logits, a[0], a[1], a[2], a[3], b0, b1);
  }
}

// O^T += V^T P^T: block m of the output has dimensions 16 m + g and 16 m + g + 8. Rows of tokens that are not
// there hold anything: the first `count` are.
__device__ __forceinline__ void add_values(Softmax<kDim>& softmax, const char* values, int count,
                                           const unsigned (&weights)[2]) {
  const int lane = threadIdx.x & 31, first = lane % 4 * 2;
  const auto mask = [&](int at) { return (at < count ? 0xffffu : 0u) | (at + 1 < count ? 0xffff0000u : 0u); };
  const unsigned low = mask(first), high = mask(first + 8);
  // Matrices: tokens 0-7 and dimensions 0-7, the same tokens and 8-15, tokens 8-15 and both.
  const char* row = values + (lane % 8 + lane / 16 * 8) * kRowBytes + lane / 8 % 2 * 16;
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
    unsigned a[4];
    cuda::load_matrices_transposed(a, row + m * 32);
    cuda::mma_bf16(softmax.out[m], a[0] & low, a[1] & low, a[2] & high, a[3] & high, weights[0], weights[1]);
  }
}

// The query of all heads, asynchronously.
__device__ inline void copy_query(char* to, const void* query, int row) {
  const int thread = threadIdx.x, head = thread / (kDim / 8), offset = thread % (kDim / 8) * 16;
  if (head < kHeads)
    cuda::cp_async_16(cuda::shared_address(to + head * kQueryStride + offset),
                      static_cast<const char*>(query) + static_cast<int64_t>(row) * kOutputs * 2 +
                          head * kDim * 2 + offset);
  cuda::cp_async_commit();
}

// A warp's share of the part's tokens; the first tile of each slot is on its way. Leaves what it found in its
// slot's tile.
__device__ inline void attend(State& shared, char* tiles, const Tokens& tokens, const List& list,
                              const char* query, bool direct, float scale) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, slot = warp / kGroups, group = warp % kGroups;
  const int row = lane / 4;
  const char* own_query = query + (group * kGroupHeads + row) * kQueryStride + lane % 4 * 4;
  char* keys = tiles + slot * kTileBytes + group * kDim * 2;
  Softmax<kDim> softmax;
  uint32_t parity = 0;
  for (int tile = slot; tile < list.tiles(); tile += kSlots) {
    const int at = tile * list.each + lane % kTile, count = list.count(tile);
    if (direct) {
      cuda::cp_async_wait<0>();
      __syncwarp();
    } else {
      cuda::mbarrier_wait(shared.arrived + slot, parity);
      parity ^= 1;
    }
    float logits[4];
    unsigned weights[2];
    multiply_keys(logits, keys, own_query);
    bool seen = lane % kTile < count;
    if (tile * list.each + count > list.sure) {
      cuda::mbarrier_wait(&shared.ranked, 0);
      if (seen && at >= list.sure)
        seen = composite(list.keys[at - list.sure], list.positions[at]) >= shared.threshold;
    }
    const unsigned all_seen = __ballot_sync(0xffffffffu, seen);
    weigh(softmax, logits, all_seen >> row & 1, all_seen >> (row + 8) & 1, scale, weights);
    add_values(softmax, keys + kTile * kRowBytes, count, weights);
    if (direct) {
      __syncwarp();
      copy_tile(tiles, tokens, list, tile + kSlots);
    } else {
      cuda::named_barrier<kGroups * 32>(1 + slot);
      if (group == 0) request_tile(shared, tiles, tokens, list, tile + kSlots);
    }
  }
  // Every slot has as many barriers: where not, racecheck loses count (docs/kernels/decode.md).
  if (!direct && list.tiles() % kSlots != 0 && slot >= list.tiles() % kSlots)
    cuda::named_barrier<kGroups * 32>(1 + slot);
  cuda::named_barrier<kGroups * 32>(1 + slot);  // results take the place of all groups' tokens
  const int quad = lane % 4;
  float* out = reinterpret_cast<float*>(tiles + slot * kTileBytes) + group * kGroupHeads * kOutStride;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = total_weight(softmax, h);
    const int head = quad * 2 + h;
    if (head >= kGroupHeads) continue;
    if (lane < 4) {
      shared.peak[warp][head] = softmax.peak[h];
      shared.sum[warp][head] = sum;
    }
    if (slot >= list.tiles()) continue;
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) {
      float* to = out + head * kOutStride + m * 16 + lane / 4;
      to[0] = softmax.out[m][h];
      to[8] = softmax.out[m][h + 2];
    }
  }
}

}  // namespace gsa::sparse_decode
