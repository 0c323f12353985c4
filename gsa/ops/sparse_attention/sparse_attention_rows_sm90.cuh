// What a warpgroup does with a set of 64 rows (queries x heads of a group) and a block of 64 keys: load the
// queries, S = Q K^T, mask, online softmax, O += P V, store. Everything between load and store stays in
// registers.
#pragma once

#include <climits>

#include "gsa/cuda/mma.h"
#include "gsa/cuda/reduction.h"
#include "gsa/ops/sparse_attention/sparse_attention_stages_sm90.cuh"

namespace gsa::sparse_attention {

// O is rescaled only when a thread's probabilities of a block, relative to the running maximum, add up to
// more than this: bf16 and fp32 hold such numbers as well as those below 1.
inline constexpr float kHighSum = 65536.0f;
inline constexpr float kLn2 = 0.6931471805599453f;

// What the threads of a warpgroup know of the rows they hold (wgmma.h): two rows, 8 apart, of each set of 64.
struct Rows {
  int query;           // of a set's queries, the one of this thread's first row
  int next;            // queries from the first row to the second
  int per_set;         // queries of a set
  int mask;            // where the masks of a block have those of this thread, in bytes
  int first_position;  // of the tile's first query
  float scale_log2;

  // The queries of a set among the tile's 64.
  __device__ __forceinline__ int first_of(int set) const { return set * per_set; }
  __device__ __forceinline__ int last_of(int set) const { return set * per_set + per_set - 1; }
  __device__ __forceinline__ uint64_t queries_of(int set) const {
    return (~uint64_t{0} >> (64 - per_set)) << first_of(set);
  }
};

// The keys of a block that a thread's two rows attend: of each its 16 columns (wgmma.h), in order, one row in
// each half. That they lie together is why place_of (sparse_attention_stages_sm90.cuh) turns the keys around.
__device__ __forceinline__ uint32_t load_masks(const unsigned char* masks, const Rows& rows) {
  const unsigned char* first = masks + rows.mask;
  return uint32_t(*reinterpret_cast<const uint16_t*>(first)) |
         uint32_t(*reinterpret_cast<const uint16_t*>(first + rows.next * 8)) << 16;
}

// What products add scores to: nothing, or what hides from a row the keys that its mask lacks.
__device__ __forceinline__ void start_scores(float (&s)[32], uint32_t masks) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) s[4 * j + 2 * r + i] = masks >> (16 * r + 2 * j + i) & 1 ? 0.0f : -INFINITY;
    }
  }
}

// Of a shared row, hides keys past `keys` (spare places) and keys after the query. Rows are sorted, so only
// last blocks need it.
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
  // In powers of two, as O is scaled. At first below all scores, and finite: a row may have no key for long.
  float maximum[2] = {-1.7e38f, -1.7e38f};
  float sum[2] = {0, 0};  // of this thread's columns
};

// One set of 64 rows and all that a thread keeps of it.
template <int E>
struct RowSet {
  int index;            // of the tile's sets
  uint32_t descriptor;  // of Q in shared memory
  float o[E / 2];
  Softmax softmax;
};

// kAdd: to what start_scores left.
template <bool kAdd, int E>
__device__ __forceinline__ void issue_scores(const RowSet<E>& set, const Block& block, float (&s)[32]) {
  // Made opaque: the compiler would keep every step's descriptor in a register through the whole walk.
  uint32_t query = set.descriptor;
  asm volatile("" : "+r"(query));
  cuda::wgmma_fence();
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
    const int step = (k / 4 * Stages<E>::kPanelBytes + k % 4 * 32) >> 4;
    cuda::Wgmma<64>::template ss<false>(s, whole(query + step), whole(block.key + step), kAdd || k > 0);
  }
  cuda::wgmma_commit();
}

// Raises the running maximum to the scores' where that is higher.
template <int E>
__device__ __forceinline__ void raise_maximum(RowSet<E>& set, const float (&s)[32], float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = s[2 * r];
#pragma unroll
    for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
    const float before = set.softmax.maximum[r];
    const float raised = fmaxf(before, cuda::warp_max<4>(top) * scale_log2);
    const float factor = before == raised ? 1.0f : cuda::fast_exp2(before - raised);
    set.softmax.maximum[r] = raised;
    set.softmax.sum[r] *= factor;
#pragma unroll
    for (int j = 0; j < E / 8; ++j) {
      set.o[4 * j + 2 * r] *= factor;
      set.o[4 * j + 2 * r + 1] *= factor;
    }
  }
}

// Probabilities of a block relative to the running maximum, packed to bf16 as the product with V takes them,
// 16 keys a step, and their sums by row.
__device__ __forceinline__ void exponentials(const Softmax& softmax, const float (&s)[32],
                                             uint32_t (&p)[4][4], float (&sums)[2], float scale_log2) {
  float part[2][2] = {};
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i % 2;
      float x[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        x[j] = cuda::fast_exp2(fmaf(s[8 * step + 2 * i + j], scale_log2, -softmax.maximum[r]));
        part[r][j] = step == 0 && i < 2 ? x[j] : part[r][j] + x[j];
      }
      p[step][i] = cuda::pack_bf16(x[0], x[1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) sums[r] = part[r][0] + part[r][1];
}

// Whether the running maximum is too low for what `exponentials` made of some score. Looking at sums saves
// finding the maximum of every block.
__device__ __forceinline__ bool too_high(const float (&sums)[2]) {
  return !(sums[0] <= kHighSum && sums[1] <= kHighSum);
}

// O += P V.
template <int E>
__device__ __forceinline__ void issue_values(RowSet<E>& set, const Block& block, const uint32_t (&p)[4][4]) {
  cuda::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cuda::Wgmma<E>::template rs<true>(set.o, p[k], whole(block.value + (k * 16 * 128 >> 4)), true);
  cuda::wgmma_commit();
}

// Copies the warpgroup's 64 query rows into swizzled shared memory, spare rows as zeros.
template <int E>
__device__ __forceinline__ void load_queries(const Job& job, const Tile& tile, int row_set,
                                             unsigned char* target) {
  const SparseAttentionParams& p = job.p;
  const auto* query = static_cast<const __nv_bfloat16*>(p.query) + tile.batch * p.query_stride[0];
  const int group = p.heads / p.kv_heads, log2 = job.packing.padded_log2;
  constexpr int kPieces = 64 * (E / 8) / 128;
  uint4 pieces[kPieces];  // all in flight together
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int i = threadIdx.x % 128 + k * 128, row = i / (E / 8), chunk = i % (E / 8);
    const int t = tile.first_query + row_set * (64 >> log2) + (row >> log2), h = row & ((1 << log2) - 1);
    pieces[k] = make_uint4(0, 0, 0, 0);
    if (t < p.queries && h < group) {
      pieces[k] = *reinterpret_cast<const uint4*>(query + t * p.query_stride[1] +
                                                  (tile.kv_head * group + h) * p.query_stride[2] + chunk * 8);
    }
  }
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int i = threadIdx.x % 128 + k * 128, row = i / (E / 8), chunk = i % (E / 8);
    *reinterpret_cast<uint4*>(target + (chunk / 8) * Stages<E>::kPanelBytes +
                              cuda::swizzle_128b(row, chunk % 8)) = pieces[k];
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
    if (lane % 4 == 0 && at >= 0) p.lse[at] = sum > 0 ? set.softmax.maximum[r] * kLn2 + logf(sum) : -INFINITY;
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
