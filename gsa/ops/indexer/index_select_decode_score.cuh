// Device side of index_select's decode kernel, first third: streams a part's index keys once, through a ring
// in shared memory into products of mma.m16n8k16, and leaves their scores, a histogram of them and their
// moments in shared memory.
#pragma once

#include "gsa/ops/indexer/index_select_decode_keys.cuh"
#include "gsa/ops/indexer/index_select_decode_ring.cuh"
#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa::decode {

template <class Key, int kDim>
struct Tile {
  static constexpr int kChunks = kDim / 32;               // 16-byte pieces of a query row per lane
  static constexpr int kLoads = kDim * Key::kBytes / 64;  // and of a key row
  static constexpr int kRowPieces = kLoads * 4;           // 16-byte pieces of a key row
  static constexpr int kRowBytes = kDim * Key::kBytes;
  static constexpr int kStepKeys = kRowBytes > 128 ? 16 : 32;  // that a warp takes at a time
  static constexpr int kStepBytes = kStepKeys * kRowBytes;
  using Steps = PartSteps<kStepBytes>;
  static constexpr int kStepLoads = kStepBytes / 512;  // 16-byte pieces of a lane
  static constexpr int kMma = kStepKeys / 16 < Key::kMma ? kStepKeys / 16 : Key::kMma;  // of one block
  static constexpr int kBlocks = kStepKeys / 16 / kMma;  // of a step, one after the other
};

// Activates a step's logits; one branch for all of them, so that they overlap. NaN stays NaN.
template <int kCount>
__device__ __forceinline__ void activate(IndexActivation activation, float (&z)[kCount]) {
  if (activation == IndexActivation::kSigmoid) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = __fdividef(1.0f, 1.0f + __expf(-z[i]));
  } else if (activation == IndexActivation::kHardSigmoid) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float y = __saturatef(fmaf(z[i], 0.25f, 0.5f));
      z[i] = z[i] == z[i] ? y : z[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = z[i] < 0.0f ? 0.0f : z[i];
  }
}

// The interval that the histogram's bins divide: where scores can lie, or for ReLU where they are likely to
// (keys of unit root mean square); what lies outside falls into the outer bins.
__device__ inline void find_range(const IndexSelectDecodeParams& p, Shared& shared, int row,
                                  const float4* head_terms) {
  const int lane = threadIdx.x & 31, query = threadIdx.x / 32;
  if (query >= p.queries) return;
  const float2* terms = reinterpret_cast<const float2*>(head_terms) + query * p.heads;  // weight, bias
  float low = 0, high = 0;
  for (int j = 0; j < p.heads; ++j) {
    float peak = 1;
    if (p.activation == IndexActivation::kRelu) {
      const __nv_bfloat16* q = static_cast<const __nv_bfloat16*>(p.index_query) +
                               ((row * p.queries + query) * p.heads + j) * p.dim;
      float square = 0;
      for (int i = lane; i < p.dim; i += 32) square += __bfloat162float(q[i]) * __bfloat162float(q[i]);
      peak = sqrtf(warp_total(square)) + fmaxf(terms[j].y, 0.0f);
    }
    low += fminf(terms[j].x, 0.0f) * peak;
    high += fmaxf(terms[j].x, 0.0f) * peak;
  }
  const float width = high - low;
  const bool usable = width > 1e-30f && width < 1e30f;
  if (lane == 0) {
    shared.bins[query] = usable ? make_float2(low, kBins / width) : make_float2(0, 1);
  }
}

// The row's queries as fragments of mma.m16n8k16's B, eight columns of (query, head) at a time, and each
// column's weight and bias; columns beyond the last head are zero.
template <class Key, int kDim, int kColumns>
struct Queries {
  static constexpr int kChunks = Tile<Key, kDim>::kChunks, kPieces = kColumns * kChunks * 32;
  uint4 piece[(kPieces + kThreads - 1) / kThreads];
  float weight = 0, bias = 0;

  __device__ void fetch(const IndexSelectDecodeParams& p, int row) {
    const int columns = static_cast<int>(p.queries) * p.heads, thread = threadIdx.x;
    const __nv_bfloat16* q =
        static_cast<const __nv_bfloat16*>(p.index_query) + static_cast<int64_t>(row) * columns * kDim;
#pragma unroll
    for (int i = 0; i < kPieces; i += kThreads) {
      const int at = i + thread, lane = at % 32, chunk = at / 32 % kChunks,
                column = at / 32 / kChunks * 8 + lane / 4;
      piece[i / kThreads] =
          at < kPieces && column < columns
              ? *reinterpret_cast<const uint4*>(q + column * kDim + Key::first_dimension(chunk) +
                                                lane % 4 * (16 / Key::kBytes))
              : make_uint4(0, 0, 0, 0);
    }
    if (thread >= columns) return;
    weight = p.head_weight[static_cast<int64_t>(row) * columns + thread];
    bias = p.head_bias ? p.head_bias[thread % p.heads] : 0.0f;
  }

  __device__ void store(uint4* query_pieces, float4* head_terms) const {
#pragma unroll
    for (int i = 0; i < kPieces; i += kThreads)
      if (i + threadIdx.x < kPieces) query_pieces[i + threadIdx.x] = piece[i / kThreads];
    if (threadIdx.x < kColumns * 8)
      reinterpret_cast<float2*>(head_terms)[threadIdx.x] = make_float2(weight, bias);
  }
};

// What a lane adds up for one query.
struct Moments {
  double sum = 0, square = 0;
  int count = 0;

  __device__ __forceinline__ void add(float score, bool seen) {
    const double x = seen ? score : 0.0f;
    sum += x;
    square = fma(x, x, square);
    count += seen;
  }
};

// Adds up the warp's moments, except over quads: those hold different queries. Of kSets sets of columns, the
// first kUsed hold queries.
template <int kSets, int kUsed>
__device__ __forceinline__ void leave_moments(Shared& shared, Moments (&moments)[kUsed]) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
#pragma unroll
  for (int s = 0; s < kUsed; ++s) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      moments[s].sum += __shfl_xor_sync(0xffffffffu, moments[s].sum, offset);
      moments[s].square += __shfl_xor_sync(0xffffffffu, moments[s].square, offset);
      moments[s].count += __shfl_xor_sync(0xffffffffu, moments[s].count, offset);
    }
    if (lane < 4) {
      double* of_quad = shared.moments + ((warp * kSets + s) * 4 + lane) * 3;
      of_quad[0] = moments[s].sum;
      of_quad[1] = moments[s].square;
      of_quad[2] = moments[s].count;
    }
  }
}

// Scores the part: scores into scores[query * stride + key - begin] (NaN: not to be selected), counts of the
// keys that are not kept anyway into histogram[query], moments into shared.moments.
template <class Key, int kDim, int kColumns>
__device__ inline void score_part(const IndexSelectDecodeParams& p, const Part part, Shared& shared,
                                  KeyRing<typename Tile<Key, kDim>::Steps>& ring, int warps,
                                  const uint4* query_pieces, const float4* head_terms,
                                  const float2* column_scales, unsigned* histogram, float* scores,
                                  int stride) {
  using T = Tile<Key, kDim>;
  constexpr int kSets = moment_sets(kColumns);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  const int tokens = static_cast<int>(p.queries), heads = p.heads;
  const int stride_keys = warps * T::kStepKeys;
  const float scale = rsqrtf(static_cast<float>(kDim));
  Moments moments[kSets];

  auto put = [&](int query, int key, float score, Moments& m) {
    const int position = part.length - tokens + query;
    const bool mine = query < tokens && key < part.end;
    const bool seen = mine && key <= position && score == score;
    m.add(score, seen);
    const bool usable = seen && score > -INFINITY;
    if (usable && key >= p.keep_first && key <= position - p.keep_recent)
      atomicAdd(histogram + query * kBins + clamp_bin(bin_of(shared.bins[query], score)), 1u);
    if (mine) scores[query * stride + key - part.begin] = usable ? score : NAN;
  };
  // What is left of a tile's 16x8 block: four scores a lane for one head; for more, sums over heads.
  auto reduce = [&](int n, int base, const float(&s)[T::kMma * 4]) {
    if (heads == 1) {
#pragma unroll
      for (int i = 0; i < T::kMma * 4; ++i)
        put(n * 8 + quad * 2 + i % 2, base + i / 4 * 16 + group + i % 4 / 2 * 8, s[i],
            moments[i % 2 * (kSets - 1)]);
      return;
    }
    float sum[T::kMma * 2];
#pragma unroll
    for (int i = 0; i < T::kMma * 2; ++i) sum[i] = s[i * 2] + s[i * 2 + 1];
    if (heads == 2) {
#pragma unroll
      for (int i = 0; i < T::kMma * 2; ++i) put(n * 4 + quad, base + i * 8 + group, sum[i], moments[n]);
      return;
    }
#pragma unroll
    for (int i = 0; i < T::kMma * 2; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
    if (heads == 4 && (tokens > 1 || T::kMma == 1)) {  // odd lanes of a quad take the second eight keys
#pragma unroll
      for (int i = 0; i < T::kMma; ++i)
        put(n * 2 + quad / 2, base + i * 16 + quad % 2 * 8 + group, quad % 2 ? sum[i * 2 + 1] : sum[i * 2],
            moments[n]);
      return;
    }
    // One query in the block: a quad's four lanes take four runs of eight keys.
#pragma unroll
    for (int i = 0; i < T::kMma * 2; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, sum[i], 2);
      sum[i] = heads == 8 ? sum[i] + other : quad < 2 ? sum[i] : other;
    }
#pragma unroll
    for (int i = 0; i < (T::kMma + 1) / 2; ++i) {
      const float low = quad % 2 ? sum[i * 4 + 1] : sum[i * 4];
      float high = low;
      if constexpr (T::kMma > 1) high = quad % 2 ? sum[i * 4 + 3] : sum[i * 4 + 2];
      if (T::kMma > 1 || quad < 2)
        put(n, base + i * 32 + quad * 8 + group, quad < 2 ? low : high, moments[n]);
    }
  };
  auto compute_block = [&](const uint4* piece, int base, bool last) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (kColumns > 1 && n * 8 >= tokens * heads) break;
      const float4 term = head_terms[n * 4 + quad];
      const float2 factor = Key::unscale(scale, column_scales + n * 4 + quad);
      float z[T::kMma * 4];
#pragma unroll
      for (int m = 0; m < T::kMma; ++m) {
        const uint4* rows0 = piece + m * 2 * T::kLoads;
        const uint4* rows8 = rows0 + T::kLoads;
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < T::kLoads; ++i)
          Key::multiply(c, rows0[i], rows8[i],
                        query_pieces + (n * T::kChunks + i * (T::kChunks / T::kLoads)) * 32 + lane);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          z[m * 4 + i] = fmaf(c[i], i % 2 ? factor.y : factor.x, i % 2 ? term.w : term.y);
      }
      if (last && n == 0) ring.refill();
      activate(p.activation, z);
#pragma unroll
      for (int i = 0; i < T::kMma * 4; ++i) z[i] *= i % 2 ? term.z : term.x;
      reduce(n, base, z);
    }
  };

  for (int base = warp < warps ? part.begin + warp * T::kStepKeys : part.end; base < part.end;
       base += stride_keys) {
    const uint4* keys = ring.wait();
    uint4 piece[T::kStepLoads];
#pragma unroll
    for (int i = 0; i < T::kStepLoads; ++i)
      piece[i] = keys[(i / T::kLoads * 8 + group) * T::kRowPieces + i % T::kLoads * 4 + quad];
#pragma unroll
    for (int b = 0; b < T::kBlocks; ++b)
      compute_block(piece + b * T::kMma * 2 * T::kLoads, base + b * T::kMma * 16, b == T::kBlocks - 1);
  }
  leave_moments<kSets>(shared, moments);
}

// One token of four heads, the common case. Keys are the columns of the products and heads their rows, every
// head in four copies: the lanes of copy r keep the r-th eight of 32 keys. So a lane holds two heads of two
// keys, every lane activates and only one sum needs another lane.
template <class Key, int kDim>
class SoloScorer {
  using T = Tile<Key, kDim>;
  static_assert(T::kStepKeys == 32);
  static constexpr int kProducts = kDim / 16, kEach = kProducts / T::kLoads;  // products of a 16-byte piece

 public:
  __device__ __forceinline__ SoloScorer(const uint4* query_pieces, const float4* head_terms,
                                        const float2* column_scales) {
    const int lane = threadIdx.x & 31;
    group_ = lane / 4;
    quad_ = lane % 4;
    copy_ = group_ / 2;
    pair_ = group_ % 2;
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      const uint2* pieces =
          reinterpret_cast<const uint2*>(query_pieces + i / 2 * 32 + pair_ * 8 + quad_) + i % 2;
      query_[i][0] = pieces[0].x;
      query_[i][1] = pieces[8].x;
      query_[i][2] = pieces[0].y;
      query_[i][3] = pieces[8].y;
    }
    term_ = head_terms[pair_];
    factor_ = Key::unscale(rsqrtf(static_cast<float>(kDim)), column_scales + pair_);
  }

  // Which key of a step's 32 is the lane's.
  __device__ __forceinline__ int place() const {
    return copy_ * 8 + quad_ * 2 + pair_;
  }

  // The score of the lane's key in the ring's next step.
  template <class Steps>
  __device__ __forceinline__ float score(IndexActivation activation, KeyRing<Steps>& ring) const {
    static_assert(Steps::kBytes == T::kStepBytes);
    const uint4* keys = ring.wait() + group_ * T::kRowPieces + quad_;
    float c[4][4] = {};
#pragma unroll
    for (int i = 0; i < T::kLoads; ++i)
#pragma unroll
      for (int eight = 0; eight < 4; ++eight) {
        const uint4 piece = keys[eight * 8 * T::kRowPieces + i * 4];  // a copy, or nvcc loads its halves
        Key::multiply_rows(c[eight], query_ + i * kEach, piece);
      }
    ring.refill();
    float z[4];  // of two heads, two keys each
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = copy_ % 2 ? c[1][i] : c[0][i], high = copy_ % 2 ? c[3][i] : c[2][i];
      z[i] = fmaf(copy_ / 2 ? high : low, i / 2 ? factor_.y : factor_.x, i / 2 ? term_.w : term_.y);
    }
    activate(activation, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] *= i / 2 ? term_.z : term_.x;
    const float first = z[0] + z[2], second = z[1] + z[3];
    const float other = __shfl_xor_sync(0xffffffffu, pair_ ? first : second, 4);
    return (pair_ ? second : first) + other;
  }

 private:
  int group_, quad_, copy_, pair_;  // rows: heads 2 pair and 2 pair + 1
  unsigned query_[kProducts][4];
  float4 term_;
  float2 factor_;
};

// score_part for one token of four heads.
template <class Key, int kDim>
__device__ inline void score_part_solo(const IndexSelectDecodeParams& p, const Part part, Shared& shared,
                                       KeyRing<typename Tile<Key, kDim>::Steps>& ring, int warps,
                                       const uint4* query_pieces, const float4* head_terms,
                                       const float2* column_scales, unsigned* histogram, float* scores) {
  const SoloScorer<Key, kDim> scorer(query_pieces, head_terms, column_scales);
  constexpr int kStepKeys = Tile<Key, kDim>::kStepKeys;
  const int warp = threadIdx.x / 32, stride_keys = warps * kStepKeys;
  const float2 bins = shared.bins[0];
  const int first_counted = p.keep_first, last_counted = min(part.length - 1 - p.keep_recent, part.end - 1);
  Moments moments[1];
  int key = part.begin + warp * kStepKeys + scorer.place();
  for (int base = warp < warps ? part.begin + warp * kStepKeys : part.end; base < part.end;
       base += stride_keys) {
    const float score = scorer.score(p.activation, ring);
    const bool mine = key < part.end, seen = mine && score == score, usable = seen && score > -INFINITY;
    moments[0].add(score, seen);
    if (usable && key >= first_counted && key <= last_counted)
      atomicAdd(histogram + clamp_bin(bin_of(bins, score)), 1u);
    if (mine) scores[key - part.begin] = usable ? score : NAN;
    key += stride_keys;
  }
  leave_moments<moment_sets(1)>(shared, moments);
}

}  // namespace gsa::decode
