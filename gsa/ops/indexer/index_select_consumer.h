// The consumers of the key stream: a warpgroup scores 32 queries, its warps finish 8 rows each.
#pragma once

#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/reduction.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/indexer/index_select_budget.h"
#include "gsa/ops/indexer/index_select_finish.h"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_stage.h"
#include "gsa/ops/indexer/index_select_trim.h"

namespace gsa::fused_select {

enum class Take { kPlain, kMasked, kSample };

template <class S>
struct Consumer {
  const IndexSelectParams& p;
  Layout<S>& shared;
  const RowStore store;
  const bool wild_keys;
  cuda::RingPosition<Layout<S>::kStages> at;
  int works;      // of the whole grid
  int first_row;  // of the tile, among the rows of all tiles (shared rows only)

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32 - 4; }
  __device__ __forceinline__ WarpScratch& scratch() { return shared.warps[warp()]; }
  __device__ __forceinline__ uint32_t* bins(int row) { return shared.bins[warp()][row]; }
  __device__ __forceinline__ Notes<S>& notes() { return shared.notes[warp()][lane()]; }
  __device__ __forceinline__ uint32_t first_staged() {
    return cuda::mbarrier_address(&scratch().staged[0][lane()]);
  }
  __device__ __forceinline__ uint8_t* my_slots() const {
    // Shared rows are merged by another kernel: each keeps its lists.
    const size_t first = S::kShared ? first_row : static_cast<size_t>(blockIdx.x) * S::kTileQueries;
    return store.row(first + threadIdx.x / kLanesPerRow - 32);
  }

  // Moves what the lanes have staged to their lists, and trims lists that could not take as much again.
  __device__ __forceinline__ void flush(Row& row) {
    constexpr int kFlight = 4;
    Notes<S>& notes = this->notes();
    const uint32_t first = first_staged();
    const int mine = static_cast<int>(row.next - first) / kStagedStep;
    const int most = __reduce_max_sync(kWarp, mine);
    const Scale scale = notes.scale;
    const int count = notes.count;
    uint8_t* to = my_slots() + 8 * (lane() & 3) + kEntryStep * count;
    uint32_t* my_bins = bins(lane() / 4);
    for (int i = 0; i < most; i += kFlight) {
      uint2 entries[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j) entries[j] = load_staged(first + kStagedStep * (i + j));
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        store_and_count(i + j < mine, to + kEntryStep * (i + j), entries[j],
                        my_bins + scale.bin(__uint_as_float(entries[j].x)));
    }
    row.next = first;
    notes.count = count + mine;
    const bool full = count + mine > store.lane_limit - kStaged;
    if (__any_sync(kWarp, full)) {
      const Trimmed left = trim_full_rows(my_slots(), count + mine, row.gate, scale, notes.need, full,
                                          bins(0), scratch().digits);
      if (left.total >= 0) notes.set_total(left.total);
      row.gate = left.gate;
    }
  }

  // Scores the next staged block, whose first key lies at `begin`.
  template <Take kTake>
  __device__ __forceinline__ void take_block(const Query<S>& q, int begin, const Bounds& bounds,
                                             RowOf<S>& row) {
    cuda::mbarrier_wait(&shared.full[at.slot], at.parity);
    const uint32_t stage = cuda::mbarrier_address(shared.keys[at.slot]);
#pragma unroll
    for (int half = 0; half < kBlockKeys / S::kColumns; ++half) {
      float logits[S::kProducts][S::kColumns / 2];
      issue_products<S>(q, stage, half * S::kColumns, logits);
      cuda::wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < S::kProducts; ++i) cuda::wgmma_pin(logits[i]);
      if (half == kBlockKeys / S::kColumns - 1) {
        __syncwarp();
        if (lane() == 0) cuda::mbarrier_arrive(&shared.empty[at.slot]);
        at.advance();
      }
      if constexpr (kTake == Take::kSample) {
        count_scores<S>(q, logits, notes().scale, bins(lane() / 4));
      } else {
        take_scores<S, kTake == Take::kMasked>(q, logits, begin + half * S::kColumns + 2 * (lane() & 3),
                                               bounds, row, notes());
        if (__any_sync(kWarp, row.next > first_staged() + (kStaged - S::kColumns / 4) * kStagedStep))
          flush(row);
      }
    }
  }

  __device__ __forceinline__ void clear_bins() {
    __syncwarp();
    for (int i = lane(); i < 8 * kBins; i += 32) bins(0)[i] = 0;
    __syncwarp();
  }

  // A first look at some keys: the shift, the histogram's scale and, where there is a sample, the gate.
  __device__ __forceinline__ void look_ahead(const Work& work, int64_t query, RowOf<S>& row) {
    Query<S> q;
    load_query<S>(p, work.batch, query, q);
    Notes<S>& notes = this->notes();
    row.gate = kInfinity;
    row.next = first_staged();
    const int samples = work.samples * kBlockKeys;
    const int position = notes.position;
    take_block<Take::kMasked>(q, 0, Bounds{samples > 0 ? INT32_MAX : position, 0, 0}, row);
    const float seen = samples > 0 ? kBlockKeys : max(1, min(position + 1, kBlockKeys));
    const float mean = cuda::warp_sum<4>(row.sum) / seen;
    const float spread = sqrtf(fmaxf(cuda::warp_sum<4>(row.squares) / seen - mean * mean, 0.0f));
    row.shift = coarse(mean);
    row.gate = -kInfinity;
    notes.scale = {mean - 3.0f * spread, spread > 0.0f ? kBins / (9.0f * spread) : 0.0f};
    if (samples > 0) sample_gate(q, work, row);
    notes.scale.low -= row.shift;
    clear_bins();
  }

  // Sets the gate from the histogram of a sample, and the scale for what will pass it.
  __device__ __forceinline__ void sample_gate(const Query<S>& q, const Work& work, RowOf<S>& row) {
    Notes<S>& notes = this->notes();
    const int samples = work.samples * kBlockKeys;
    const int rank = sample_rank(samples, max(notes.need, 1),
                                 S::kShared ? max(row_last<S>(notes) + 1, 1) : notes.position + 1);
    clear_bins();
    for (int i = 0; i < work.samples; ++i) take_block<Take::kSample>(q, 0, Bounds{}, row);
    __syncwarp();
    for (int r = 0; r < 8; ++r) {
      const int wanted = __shfl_sync(kWarp, rank, 4 * r);
      if (wanted > samples) continue;
      const Digit at_rank = find_digit<kBins>(bins(r), wanted);
      const Digit best = find_digit<kBins>(bins(r), 1);
      if (lane() / 4 != r || at_rank.digit == 0) continue;  // the lowest bin has no lower end
      const float bin = 1.0f / notes.scale.per_bin;
      const float inside = static_cast<float>(at_rank.rank) / at_rank.count;
      const float gate = notes.scale.low + (at_rank.digit + 1 - inside) * bin;
      const float high = notes.scale.low + (best.digit + 1) * bin;
      row.gate = gate - row.shift;
      notes.scale = {gate, kBins / (1.1f * (high - gate) + bin)};
    }
  }

  // The whole pass over the keys.
  __device__ __forceinline__ void stream(const Work& work, int64_t query, RowOf<S>& row) {
    Query<S> q;  // loaded again, so that it holds no registers while rows are finished
    load_query<S>(p, work.batch, query, q);
    const bool careful = wild_keys || __any_sync(kWarp, q.wild);
    const int wg_first =
        static_cast<int>(work.first_position) + 32 * (static_cast<int>(threadIdx.x) / 128 - 1);
    // Blocks [first_plain, last_plain) hold only keys that every query of the warpgroup may choose.
    const int first_plain = (p.keep_first + kBlockKeys - 1) / kBlockKeys;
    int wg_last = wg_first;
    if constexpr (S::kShared) wg_last -= static_cast<int>((wg_first + p.queries - p.keys) % p.query_tile) + 1;
    const int last_plain = careful ? 0 : (wg_last - p.keep_recent + 1) / kBlockKeys;
    Notes<S>& notes = this->notes();
    notes.skipped = 0;
    row.sum = row.squares = 0;
    if constexpr (S::kSoftmax) row.forget();
    for (int i = 0; i < work.key_blocks; ++i) {
      if (i >= first_plain && i < last_plain) {
        take_block<Take::kPlain>(q, i * kBlockKeys, Bounds{}, row);
      } else {
        const Bounds bounds{notes.position, p.keep_first,
                            max(0, row_last<S>(notes) - p.keep_recent + 1 - p.keep_first)};
        take_block<Take::kMasked>(q, i * kBlockKeys, bounds, row);
      }
    }
    flush(row);
  }

  // Leaves row r of the warp, of budget k, to the merge.
  __device__ __forceinline__ void note_row(const RowView& view, int k, int r) {
    SharedRow* rows = reinterpret_cast<SharedRow*>(store.row(static_cast<size_t>(works) * S::kTileQueries));
    note_shared_row(view, k, shared.notes[warp()][4 * r].scale, bins(r), scratch(),
                    rows[first_row + 8 * warp() + r]);
  }

  // Trims and emits the warp's rows. Returns whether one came out short because its guessed gate was too
  // high: then it loses the gate, and the tile runs again; finished rows close theirs.
  __device__ __forceinline__ bool finish(const Work& work, int64_t query, RowOf<S>& row) {
    Notes<S>& notes = this->notes();
    const int position = notes.position;
    const float n = fmaxf(static_cast<float>(position + 1) - cuda::warp_sum<4>(notes.skipped), 1.0f);
    const float mean = cuda::warp_sum<4>(row.sum) / n;
    const float variance = fmaxf(__fsub_rn(cuda::warp_sum<4>(row.squares) / n, __fmul_rn(mean, mean)), 0.0f);
    const bool open = position >= 0 && row.gate != kInfinity;
    float statistic;
    if constexpr (S::kSoftmax)
      statistic = softmax_statistic(p, row);
    else
      statistic = find_statistic(p, variance, position);
    const int64_t first_token = work.batch * p.queries + query - lane() / 4;
    // Any query of a shared row may turn out to have the largest budget.
    const int budget = open ? find_budget<S::kSoftmax>(p, statistic, position) : 0;
    const int need = !open ? 0 : S::kShared ? notes.need : budget - notes.kept;
    const int total = cuda::warp_sum<4>(notes.count);
    const bool short_of = open && total < need && row.gate > -kInfinity;
    if (open && (lane() & 3) == 0) p.statistic[first_token + lane() / 4] = statistic;
    if constexpr (!S::kShared) clear_bitmap(scratch().bitmap);  // staged survivors lay there
    for (int r = 0; r < 8; ++r) {
      if (!__shfl_sync(kWarp, static_cast<int>(open && !short_of), 4 * r)) continue;
      const RowView view = view_row(my_slots(), notes.count, r);
      if constexpr (S::kShared) {
        note_row(view, __shfl_sync(kWarp, budget, 4 * r), r);
        continue;
      }
      const int last = __shfl_sync(kWarp, position, 4 * r);
      const int wanted = __shfl_sync(kWarp, need, 4 * r);
      const int64_t token = first_token + r;
      RowWriter writer{p.indices + token * p.capacity, min(p.keep_first, last + 1),
                       max(0, last + 1 - p.keep_recent), last};
      const Scale scale = shared.notes[warp()][4 * r].scale;
      const int written = finish_row(view, wanted, scale, bins(r), writer, p.capacity, scratch());
      if (lane() == 0) p.counts[token] = written;
    }
    row.gate = short_of ? -kInfinity : kInfinity;
    notes.count = 0;
    clear_bins();
    return __any_sync(kWarp, short_of);
  }

  __device__ __forceinline__ void run_tile(const Work& work, int* again) {
    const int64_t query = work.first_query + threadIdx.x / kLanesPerRow - 32;
    Notes<S>& notes = this->notes();
    notes = Notes<S>{RowNotes{{}, 0, 0, -1, 0, 0}};
    if constexpr (S::kShared) first_row = static_cast<int>(first_row_of<S>(p, work));
    if (query < p.queries) {
      const int position = static_cast<int>(query + p.keys - p.queries);
      notes.position = position;
      if constexpr (S::kShared) {
        notes.end = position - static_cast<int>(query % p.query_tile);
        notes.need = shared_need(p, notes.end);
      } else {
        notes.kept = min(p.keep_first + p.keep_recent, position + 1);
        notes.need = full_budget(p, position) - notes.kept;
      }
    }
    RowOf<S> row;
    if constexpr (S::kSoftmax) row.factor = softmax_factor(p);
    look_ahead(work, query, row);
    if (notes.position < 0) row.gate = kInfinity;
    // No row is short after a second pass.
    for (int pass = 0; pass < 2; ++pass) {
      stream(work, query, row);
      if (finish(work, query, row) && lane() == 0) atomicOr(again, 1);
      tile_barrier<S>();
      if (*again == 0) break;
    }
  }
};

}  // namespace gsa::fused_select
