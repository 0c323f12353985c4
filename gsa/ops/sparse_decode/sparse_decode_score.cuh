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

// A warp's steps for a KeyRing: every so many words of the part.
template <class Key>
class WordSteps {
  static constexpr int kRowBytes = kIndexDim * Key::kBytes;

 public:
  static constexpr int kBytes = kWord * kRowBytes;

  // `keys` points to the row's first key.
  __device__ __forceinline__ WordSteps(const void* keys, const Share& share, int warps)
      : source_(static_cast<const char*>(keys)),
        stride_(warps),
        share_(share),
        next_(static_cast<int>(threadIdx.x) / 32) {}

  // Calls load(from, bytes) for the next step, if there is one.
  template <typename Load>
  __device__ __forceinline__ void advance(Load&& load) {
    if (next_ >= share_.words) return;
    const int first = share_.base(next_);
    load(source_ + static_cast<int64_t>(first) * kRowBytes,
         static_cast<uint32_t>(min(share_.length - first, kWord) * kRowBytes));
    next_ += stride_;
  }

 private:
  const char* source_;
  int stride_;
  Share share_;
  int next_;  // word
};

// Scores into scores[word * 32 + key]: NaN where a key is not chosen by its score, kept ones too.
template <class Key>
__device__ inline void score_words(const IndexSelectDecodeParams& p, const Share& share, State& shared,
                                   KeyRing<WordSteps<Key>>& ring, int warps, const uint4* query_pieces,
                                   const float4* head_terms, const float2* column_scales, unsigned* histogram,
                                   float* scores) {
  const SoloScorer<Key, kIndexDim> scorer(query_pieces, head_terms, column_scales);
  const int warp = threadIdx.x / 32, place = scorer.place();
  const float2 bins = shared.bins[0];
  const int last_counted = share.length - 1 - p.keep_recent;
  Moments moments[1];
  for (int word = warp < warps ? warp : share.words; word < share.words; word += warps) {
    const float score = scorer.score(p.activation, ring);
    const int position = share.base(word) + place;
    const bool seen = position < share.length && score == score;
    moments[0].add(score, seen);
    const bool wanted = position >= p.keep_first && position <= last_counted;
    const bool usable = seen && score > -INFINITY && wanted;
    if (usable) atomicAdd(histogram + clamp_bin(bin_of(bins, score)), 1u);
    if (wanted && !usable) atomicAdd(&shared.missing_here, 1u);
    scores[word * kWord + place] = usable ? score : NAN;
  }
  leave_moments<moment_sets(1)>(shared, moments);
}

}  // namespace gsa::sparse_decode
