// What a warpgroup does with a set of 64 rows (queries x heads of a group) and a block of 64 keys: load the
// queries, S = Q K^T, mask, online softmax, O += P V, store. Everything between load and store stays in
// registers.
#pragma once

#include "gsa/cuda/reduction.h"
#include "gsa/ops/sparse_attention/sparse_attention_stages_sm90.cuh"

namespace gsa::sparse_attention {

// O is rescaled only when the running maximum grew by more than this (in powers of two): P stays below 2^8,
// which bf16 holds as well.
inline constexpr float kRescaleThreshold = 8.0f;

// What the threads of a warpgroup know of the rows they hold (wgmma.h): two rows, 8 apart, of each set of 64.
struct Rows {
  int query;           // of a set's queries, the one of this thread's first row
  int next;            // queries from the first row to the second
  int per_set;         // queries of a set
  int first_position;  // of the tile's first query
  float scale_log2;

  // The queries of a set among the tile's 64.
  __device__ __forceinline__ int first_of(int set) const { return set * per_set; }
  __device__ __forceinline__ int last_of(int set) const { return set * per_set + per_set - 1; }
  __device__ __forceinline__ uint64_t queries_of(int set) const {
    return (~uint64_t{0} >> (64 - per_set)) << first_of(set);
  }
};

// The keys of a block that a thread's two rows attend, from its first column on.
struct RowMasks {
  uint64_t rows[2];
};

// Of a set's queries, from the block's masks; none where the set has no block.
__device__ __forceinline__ RowMasks load_masks(const uint64_t* masks, bool active, const Rows& rows) {
  const int shift = 2 * (threadIdx.x % 4);
  const uint64_t first = masks[rows.query], second = masks[rows.query + rows.next];
  return {active ? first >> shift : 0, active ? second >> shift : 0};
}

// Hides from each of a thread's two rows the keys that its mask lacks.
__device__ __forceinline__ void mask_scores(float (&s)[32], const RowMasks& masks) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint32_t half[2] = {uint32_t(masks.rows[r]), uint32_t(masks.rows[r] >> 32)};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!(half[j / 4] & (1u << (8 * (j % 4) + i)))) s[4 * j + 2 * r + i] = -INFINITY;
      }
    }
  }
}

// The same for a shared row: hides keys past `keys` (spare places) and keys after the query. Rows are sorted,
// so only last blocks need it.
__device__ __forceinline__ void mask_future(float (&s)[32], const int32_t* tokens, int keys, int set,
                                            const Rows& rows) {
  if (keys >= kBlockKeys && tokens[kBlockKeys - 1] <= rows.first_position) return;
  const int position = rows.first_position + set * rows.per_set + rows.query;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 8 * j + 2 * (threadIdx.x % 4) + i;
      const int token = column < keys ? tokens[column] : 0x7fffffff;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (token > position + r * rows.next) s[4 * j + 2 * r + i] = -INFINITY;
      }
    }
  }
}

// The running softmax of a thread's two rows.
struct Softmax {
  float maximum[2] = {-INFINITY, -INFINITY};  // of the raw scores, as O is scaled
  float sum[2] = {0, 0};                      // of this thread's columns
};

// One set of 64 rows and all that a thread keeps of it.
template <int E>
struct RowSet {
  int index;            // of the tile's sets
  uint32_t descriptor;  // of Q in shared memory
  float o[E / 2];
  Softmax softmax;
};

template <int E>
__device__ __forceinline__ void issue_scores(const RowSet<E>& set, const Block& block, float (&s)[32]) {
  // Made opaque: the compiler would keep every step's descriptor in a register through the whole walk.
  uint32_t query = set.descriptor;
  asm volatile("" : "+r"(query));
  cuda::wgmma_fence();
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
    const int step = (k / 4 * Stages<E>::kPanelBytes + k % 4 * 32) >> 4;
    cuda::Wgmma<64>::template ss<false>(s, whole(query + step), whole(block.key + step), k > 0);
  }
  cuda::wgmma_commit();
}

// Raises the running maximum to the scores' where that is higher; `top` has those of this thread's columns.
template <int E>
__device__ __forceinline__ void rescale(RowSet<E>& set, const float (&top)[2], float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float before = set.softmax.maximum[r], raised = fmaxf(before, cuda::warp_max<4>(top[r]));
    const float factor = before == raised ? 1.0f : cuda::fast_exp2((before - raised) * scale_log2);
    set.softmax.maximum[r] = raised;
    set.softmax.sum[r] *= factor;
#pragma unroll
    for (int j = 0; j < E / 8; ++j) {
      set.o[4 * j + 2 * r] *= factor;
      set.o[4 * j + 2 * r + 1] *= factor;
    }
  }
}

// Scores to probabilities relative to the running maximum, in place; O and the sums are rescaled when that
// moved far. Several sets go through each step together: one alone would leave the warp waiting for its own
// results.
template <int E, int kSets>
__device__ __forceinline__ void normalise(RowSet<E>* sets, float (&s)[kSets][32], float scale_log2) {
  float top[kSets][2];
  bool moved = false;
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = fmaxf(s[k][2 * r], s[k][2 * r + 1]), odd = fmaxf(s[k][4 + 2 * r], s[k][4 + 2 * r + 1]);
#pragma unroll
      for (int j = 2; j < 8; j += 2) {
        even = fmaxf(even, fmaxf(s[k][4 * j + 2 * r], s[k][4 * j + 2 * r + 1]));
        odd = fmaxf(odd, fmaxf(s[k][4 * j + 4 + 2 * r], s[k][4 * j + 4 + 2 * r + 1]));
      }
      top[k][r] = fmaxf(even, odd);
    }
  }
  // Each thread looks at its own columns: a row's maximum over all of them is needed only if one of them
  // moved far.
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      moved |= (top[k][r] - sets[k].softmax.maximum[r]) * scale_log2 > kRescaleThreshold;
  }
  if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
    for (int k = 0; k < kSets; ++k) rescale(sets[k], top[k], scale_log2);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float offset[kSets], sum[kSets][2];
#pragma unroll
    for (int k = 0; k < kSets; ++k) {
      const float maximum = sets[k].softmax.maximum[r];
      offset[k] = maximum == -INFINITY ? 0.0f : maximum * scale_log2;
      sum[k][0] = sets[k].softmax.sum[r], sum[k][1] = 0;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int k = 0; k < kSets; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[k][4 * j + 2 * r + i];
          x = cuda::fast_exp2(fmaf(x, scale_log2, -offset[k]));
          sum[k][i] += x;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kSets; ++k) sets[k].softmax.sum[r] = sum[k][0] + sum[k][1];
  }
}

// O += P V, with P packed to bf16.
template <int E>
__device__ __forceinline__ void issue_values(RowSet<E>& set, const Block& block, const float (&p)[32]) {
  uint32_t packed[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) packed[k][i] = cuda::pack_bf16(p[8 * k + 2 * i], p[8 * k + 2 * i + 1]);
  }
  cuda::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cuda::Wgmma<E>::template rs<true>(set.o, packed[k], whole(block.value + (k * 16 * 128 >> 4)), true);
  cuda::wgmma_commit();
}

// What masking a block will need of shared memory, read while its scores are computed.
template <int E, bool kSharedRow>
__device__ __forceinline__ RowMasks masks_of(const RowSet<E>& set, const Block& block, const Rows& rows) {
  if constexpr (kSharedRow) return {};
  return load_masks(reinterpret_cast<const uint64_t*>(block.masks) + set.index * rows.per_set, block.active,
                    rows);
}

template <int E, bool kSharedRow>
__device__ __forceinline__ void mask_block(const RowSet<E>& set, const Block& block, const RowMasks& masks,
                                           const Rows& rows, float (&s)[32]) {
  if constexpr (kSharedRow) {
    mask_future(s, reinterpret_cast<const int32_t*>(block.masks), block.keys, set.index, rows);
  } else {
    mask_scores(s, masks);
  }
}

// Copies the warpgroup's 64 query rows into swizzled shared memory, spare rows as zeros.
template <int E>
__device__ void load_queries(const Job& job, const Tile& tile, int row_set, unsigned char* target) {
  const SparseAttentionParams& p = job.p;
  const auto* query = static_cast<const __nv_bfloat16*>(p.query) + tile.batch * p.query_stride[0];
  const int group = p.heads / p.kv_heads, log2 = job.packing.padded_log2;
  for (int i = threadIdx.x % 128; i < 64 * (E / 8); i += 128) {
    const int row = i / (E / 8), chunk = i % (E / 8);
    const int t = tile.first_query + row_set * (64 >> log2) + (row >> log2), h = row & ((1 << log2) - 1);
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (t < p.queries && h < group) {
      piece = *reinterpret_cast<const uint4*>(query + t * p.query_stride[1] +
                                              (tile.kv_head * group + h) * p.query_stride[2] + chunk * 8);
    }
    *reinterpret_cast<uint4*>(target + (chunk / 8) * Stages<E>::kPanelBytes +
                              cuda::swizzle_128b(row, chunk % 8)) = piece;
  }
  cuda::fence_async_proxy();
}

// Writes O / sum and the log-sum-exp. Each warp turns its 16 rows through its part of the query's shared
// memory, so that rows leave in 16-byte pieces.
template <int E>
__device__ void store_rows(const Job& job, const Tile& tile, const RowSet<E>& set, unsigned char* staging) {
  const SparseAttentionParams& p = job.p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int group = p.heads / p.kv_heads, log2 = job.packing.padded_log2;
  bool nan = false;
  const auto place = [&](int row, int& h) {  // row of [B * T], head of the group, or -1
    const int t = tile.first_query + set.index * (64 >> log2) + (row >> log2);
    h = row & ((1 << log2) - 1);
    return t < p.queries && h < group
               ? (int64_t(tile.batch) * p.queries + t) * p.heads + tile.kv_head * group + h
               : int64_t{-1};
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp * 16 + lane / 4 + 8 * r;
    const float sum = cuda::warp_sum<4>(set.softmax.sum[r]);
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    int h;
    const int64_t at = place(row, h);
    if (lane % 4 == 0 && at >= 0)
      p.lse[at] = sum > 0 ? set.softmax.maximum[r] * p.scale + logf(sum) : -INFINITY;
#pragma unroll
    for (int j = 0; j < E / 8; ++j) {
      unsigned char* to =
          staging + (j / 8) * Stages<E>::kPanelBytes + cuda::swizzle_128b(row, j % 8) + lane % 4 * 4;
      nan |= set.o[4 * j + 2 * r] != set.o[4 * j + 2 * r] ||
             set.o[4 * j + 2 * r + 1] != set.o[4 * j + 2 * r + 1];
      *reinterpret_cast<uint32_t*>(to) =
          cuda::pack_bf16(set.o[4 * j + 2 * r] * inverse, set.o[4 * j + 2 * r + 1] * inverse);
    }
  }
  // A NaN among values that only other queries of the tile selected has met their zero weights: the generic
  // kernel decides.
  if (nan && atomicExch(job.walks.redone + tile.index, 1) == 0) append(job.walks.redo, tile.index);
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * (E / 8); i += 32) {
    const int row = warp * 16 + i / (E / 8), chunk = i % (E / 8);
    int h;
    const int64_t at = place(row, h);
    const uint4 piece = *reinterpret_cast<const uint4*>(staging + (chunk / 8) * Stages<E>::kPanelBytes +
                                                        cuda::swizzle_128b(row, chunk % 8));
    if (at >= 0) *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.out) + at * E + chunk * 8) = piece;
  }
}

}  // namespace gsa::sparse_attention
