// Device side of index_select's decode kernel, first third: streams a part's index keys once, from global
// memory into the registers of mma.m16n8k16 (16 keys by 8 columns of token and head), and leaves their
// scores, a histogram of them and their moments in shared memory.
#pragma once

#include "gsa/ops/indexer/index_select_decode_keys.cuh"
#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa::decode {

constexpr int kStepLoads = 8;                 // 16-byte loads a lane has in flight for a step
constexpr int kStepBytes = kStepLoads * 512;  // of index keys that a warp takes in a step

template <class Key, int kDim>
struct Tile {
  static constexpr int kChunks = kDim / 32;               // 16-byte pieces of a query row per lane
  static constexpr int kLoads = kDim * Key::kBytes / 64;  // and of a key row
  static constexpr int kStepKeys = kStepBytes / (Key::kBytes * kDim);                   // 16 to 64
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
// column's weight and bias; columns beyond the last head are zero. Fetched before the keys, so that they do
// not queue behind them, and put into shared memory after.
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
};

// Scores the part: scores into scores[query * stride + key - begin] (NaN: not to be selected), counts of the
// keys that are not kept anyway into histogram[query], moments into shared.stat. `prepare` fills the shared
// memory that this reads; it is called when the first keys are on their way.
template <class Key, int kDim, int kColumns, typename Prepare>
__device__ inline void score_part(const IndexSelectDecodeParams& p, const Part part, Shared& shared,
                                  const uint4* query_pieces, const float4* head_terms,
                                  const float2* column_scales, unsigned* histogram, float* scores, int stride,
                                  Prepare&& prepare) {
  using T = Tile<Key, kDim>;
  constexpr int kSets = kColumns == 1 ? 2 : kColumns;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  const int tokens = static_cast<int>(p.queries), heads = p.heads;
  using Element = typename Key::Element;
  constexpr int kLoadElements = 16 / Key::kBytes;
  const Element* source =
      static_cast<const Element*>(p.index_key) + part.row * p.key_batch_stride + quad * kLoadElements;
  const float scale = rsqrtf(static_cast<float>(kDim));
  Moments moments[kSets];

  auto load = [&](uint4(&piece)[kStepLoads], int base) {
#pragma unroll
    for (int i = 0; i < kStepLoads; ++i) {
      const int key = base + i / T::kLoads * 8 + group;
      piece[i] = key < part.end ? cuda::load_stream(source + static_cast<int64_t>(key) * kDim +
                                                    i % T::kLoads * 4 * kLoadElements)
                                : make_uint4(0, 0, 0, 0);
    }
  };
  auto put = [&](int query, int key, float score, Moments& m) {
    const int position = part.length - tokens + query;
    const bool mine = query < tokens && key < part.end;
    const bool seen = mine && key <= position && score == score;
    const double x = seen ? score : 0.0f;
    m.sum += x;
    m.square = fma(x, x, m.square);
    m.count += seen;
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
  auto compute_block = [&](const uint4* piece, int base) {
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
      activate(p.activation, z);
#pragma unroll
      for (int i = 0; i < T::kMma * 4; ++i) z[i] *= i % 2 ? term.z : term.x;
      reduce(n, base, z);
    }
  };

  auto compute = [&](const uint4(&piece)[kStepLoads], int base) {
#pragma unroll
    for (int b = 0; b < T::kBlocks; ++b)
      compute_block(piece + b * T::kMma * 2 * T::kLoads, base + b * T::kMma * 16);
  };

  uint4 even[kStepLoads], odd[kStepLoads];
  constexpr int kStride = kWarps * T::kStepKeys;
  int base = part.begin + warp * T::kStepKeys;
  load(even, base);  // in flight while the queries arrive
  prepare();
  while (base < part.end) {
    load(odd, base + kStride);
    compute(even, base);
    base += kStride;
    if (base >= part.end) break;
    load(even, base + kStride);
    compute(odd, base);
    base += kStride;
  }
#pragma unroll
  for (int s = 0; s < kSets; ++s) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      moments[s].sum += __shfl_xor_sync(0xffffffffu, moments[s].sum, offset);
      moments[s].square += __shfl_xor_sync(0xffffffffu, moments[s].square, offset);
      moments[s].count += __shfl_xor_sync(0xffffffffu, moments[s].count, offset);
    }
    if (group == 0) {
      shared.stat[warp][s][quad][0] = moments[s].sum;
      shared.stat[warp][s][quad][1] = moments[s].square;
      shared.stat[warp][s][quad][2] = moments[s].count;
    }
  }
}

}  // namespace gsa::decode
