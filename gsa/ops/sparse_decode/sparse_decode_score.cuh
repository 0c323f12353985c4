// The fused decode kernel's scores. As score_part_solo, but a row's keys are dealt to its parts 32 at a time:
// selected keys lie close together, and each part attends to its own.
#pragma once

#include "gsa/ops/indexer/index_select_decode_score.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_state.cuh"

namespace gsa::sparse_decode {

constexpr int kWord = 32;  // keys

// A part's share of a row.
struct Share {
  int rank, splits, length, words;  // of 32 keys

  __device__ Share(const Part& part)
      : rank(part.rank),
        splits(part.splits),
        length(part.length),
        words(((length + kWord - 1) / kWord - rank + splits - 1) / splits) {}
  __device__ __forceinline__ int base(int word) const { return (word * splits + rank) * kWord; }
};

// As KeyRing: a warp's steps are every so many words of the part.
class WordRing {
 public:
  static constexpr int kRowBytes = 64, kStepBytes = kWord * kRowBytes;

  __device__ __forceinline__ WordRing(Shared& shared, char* memory, const Layout& layout, const void* keys,
                                      const Share& share)
      : slots_(memory + threadIdx.x / 32 * layout.ring_bytes),
        full_(shared.full[threadIdx.x / 32]),
        source_(static_cast<const char*>(keys)),
        steps_(layout.ring_bytes / kStepBytes),
        stride_(layout.scoring_warps),
        share_(share),
        next_(static_cast<int>(threadIdx.x) / 32) {
    if (threadIdx.x % 32 == 0 && next_ < layout.scoring_warps) {
#pragma unroll 1
      for (int i = 0; i < steps_; ++i) cuda::mbarrier_init(full_ + i, 1);
      cuda::mbarrier_init_fence();
#pragma unroll 1
      for (int i = 0; i < steps_; ++i) request(i);
    }
    __syncwarp();
  }

  __device__ __forceinline__ const uint4* wait() {
    cuda::mbarrier_wait(full_ + slot_, parity_);
    return reinterpret_cast<const uint4*>(slots_ + slot_ * kStepBytes);
  }

  __device__ __forceinline__ void refill() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) request(slot_);
    if (++slot_ == steps_) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  __device__ __forceinline__ void request(int slot) {
    if (next_ >= share_.words) return;
    const int first = share_.base(next_);
    const auto bytes = static_cast<uint32_t>(min(share_.length - first, kWord) * kRowBytes);
    cuda::mbarrier_arrive_expect(full_ + slot, bytes);
    cuda::bulk_load(slots_ + slot * kStepBytes, source_ + static_cast<int64_t>(first) * kRowBytes, bytes,
                    full_ + slot);
    next_ += stride_;
  }

  char* slots_;
  uint64_t* full_;
  const char* source_;
  int steps_, stride_, slot_ = 0;
  uint32_t parity_ = 0;
  Share share_;
  int next_;  // word; lane 0's matters
};

// Scores into scores[word * 32 + key]: NaN where a key is not chosen by its score, kept ones too.
template <class Key>
__device__ inline void score_words(const IndexSelectDecodeParams& p, const Share& share, State& shared,
                                   WordRing& ring, int warps, const uint4* query_pieces,
                                   const float4* head_terms, const float2* column_scales, unsigned* histogram,
                                   float* scores) {
  constexpr int kIndexDim = 64;
  using T = Tile<Key, kIndexDim>;
  static_assert(T::kStepKeys == kWord && T::kRowBytes == WordRing::kRowBytes);
  constexpr int kProducts = kIndexDim / 16, kEach = kProducts / T::kLoads;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  const int copy = group / 2, pair = group % 2;
  unsigned query[kProducts][4];
#pragma unroll
  for (int i = 0; i < kProducts; ++i) {
    const uint2* pieces = reinterpret_cast<const uint2*>(query_pieces + i / 2 * 32 + pair * 8 + quad) + i % 2;
    query[i][0] = pieces[0].x;
    query[i][1] = pieces[8].x;
    query[i][2] = pieces[0].y;
    query[i][3] = pieces[8].y;
  }
  const float4 term = head_terms[pair];
  const float2 factor = Key::unscale(rsqrtf(static_cast<float>(kIndexDim)), column_scales + pair);
  const float2 bins = shared.bins[0];
  const int last_counted = share.length - 1 - p.keep_recent;
  const int place = copy * 8 + quad * 2 + pair;
  Moments moments[1];
  for (int word = warp < warps ? warp : share.words; word < share.words; word += warps) {
    const uint4* keys = ring.wait() + group * T::kRowPieces + quad;
    float c[4][4] = {};
#pragma unroll
    for (int i = 0; i < T::kLoads; ++i)
#pragma unroll
      for (int eight = 0; eight < 4; ++eight)
        Key::multiply_rows(c[eight], query + i * kEach, keys[eight * 8 * T::kRowPieces + i * 4]);
    ring.refill();
    float z[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = copy % 2 ? c[1][i] : c[0][i], high = copy % 2 ? c[3][i] : c[2][i];
      z[i] = fmaf(copy / 2 ? high : low, i / 2 ? factor.y : factor.x, i / 2 ? term.w : term.y);
    }
    activate(p.activation, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] *= i / 2 ? term.z : term.x;
    const float first = z[0] + z[2], second = z[1] + z[3];
    const float other = __shfl_xor_sync(0xffffffffu, pair ? first : second, 4);
    const float score = (pair ? second : first) + other;
    const int position = share.base(word) + place;
    const bool seen = position < share.length && score == score;
    const double x = seen ? score : 0.0f;
    moments[0].sum += x;
    moments[0].square = fma(x, x, moments[0].square);
    moments[0].count += seen;
    const bool wanted = position >= p.keep_first && position <= last_counted;
    const bool usable = seen && score > -INFINITY && wanted;
    if (usable) atomicAdd(histogram + clamp_bin(bin_of(bins, score)), 1u);
    if (wanted && !usable) atomicAdd(&shared.missing_here, 1u);
    scores[word * kWord + place] = usable ? score : NAN;
  }
  leave_moments<moment_sets(1)>(shared, moments);
}

}  // namespace gsa::sparse_decode
