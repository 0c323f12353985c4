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
  Group<S>& group;
  const RowStore store;
  const bool wild_keys;
  cuda::RingPosition<Group<S>::kStages> at;
  int works;           // of the whole grid
  int64_t first_row;   // of the tile's lists
  int products = 0;    // scored so far
  bool ready = false;  // the next block is there; looked up early, so that no one waits for the answer

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32 - 4; }
  // Whether lists stay for another kernel, which finishes the rows.
  __device__ __forceinline__ bool keeps() const { return p.leaves == SelectLeaves::kLists; }
  // Whether rows are shared by query_tile queries.
  __device__ __forceinline__ bool shares() const { return p.query_tile > 1; }
  // Positions up to the query's that are selected anyway.
  __device__ __forceinline__ int kept(int position) const {
    return min(p.keep_first + p.keep_recent, position + 1);
  }
  __device__ __forceinline__ WarpScratch& scratch() { return shared.warps[warp()]; }
  __device__ __forceinline__ RowNotes& notes() { return shared.notes[warp()][lane()]; }
  __device__ __forceinline__ uint32_t first_staged() {
    return cuda::mbarrier_address(&scratch().staged[0][lane()]);
  }
  // The first of the warp's eight lists.
  __device__ __forceinline__ uint8_t* lists() const { return store.row(first_row + 8 * (warp() % 4)); }

  // Moves what the lanes have staged to the rows' lists, and trims lists that could not take as much again.
  // The warp copies lane after lane, so that stores go to neighbouring addresses.
  __device__ __forceinline__ void flush(Row& row) {
    RowNotes& notes = this->notes();
    const int mine = static_cast<int>(row.next - first_staged()) / kStagedStep;
    // Bytes: how many the first one, two, three and four lanes of the quad have.
    uint32_t ends = mine * (0x01010101u << (8 * (lane() & 3)));
    ends += __shfl_xor_sync(kWarp, ends, 1);
    ends += __shfl_xor_sync(kWarp, ends, 2);
    const int before = static_cast<int>(ends >> (8 * (lane() & 3)) & 0xff) - mine;
    // Where in the warp's lists this lane's go, and how many.
    static_assert(kStaged < 64);
    const uint32_t my_copy = (lane() / 4 * store.row_limit + notes.count + before) << 6 | mine;
    const int most = __reduce_max_sync(kWarp, mine);
    __syncwarp();
    for (int first = 0; first < most; first += 32) {
      constexpr int kFlight = 8;
      const uint32_t from = cuda::mbarrier_address(scratch().staged[min(first + lane(), kStaged - 1)]);
      uint8_t* to = lists() + 8 * (first + lane());
      for (int other = 0; other < 32; other += kFlight) {
        uint2 entries[kFlight];
#pragma unroll
        for (int j = 0; j < kFlight; ++j) entries[j] = load_staged(from + 8 * (other + j));
#pragma unroll
        for (int j = 0; j < kFlight; ++j) {
          const uint32_t copy = __shfl_sync(kWarp, my_copy, other + j);
          store_if(first + lane() < static_cast<int>(copy & 63), to + uint64_t{copy >> 6} * 8, entries[j]);
        }
      }
    }
    __syncwarp();
    row.next = first_staged();
    const int count = notes.count + static_cast<int>(ends >> 24);
    notes.count = count;
    const bool full = count > full_list(store.row_limit);
    if (__any_sync(kWarp, full)) {
      const Trimmed left = trim_full_rows(lists(), store.row_limit, count, row.gate, notes.need, full,
                                          scratch().finish.digits);
      if (left.total >= 0) notes.count = left.total;
      row.gate = left.gate;
    }
  }

  // Flushes when a stage might not hold what the next product adds, or better before, when all warps of the
  // warpgroup do: a warp that flushes holds up the products of the others. One that will have to soon asks
  // all to do so after the next product, by its number; this is seen or not, the rows come out the same.
  __device__ __forceinline__ void flush_if_due(Row& row, int asked) {
    constexpr int kAdds = S::kColumns / 4, kSoon = 3;
    const int staged = static_cast<int>(row.next - first_staged());
    const bool requested = asked == products;
    if (__any_sync(kWarp, requested || staged > (kStaged - kAdds - kSoon) * kStagedStep)) {
      if (__any_sync(kWarp, requested || staged > (kStaged - kAdds) * kStagedStep))
        flush(row);
      else if (lane() == 0)
        atomicMax(&group.flush_request, products + 1);
    }
    ++products;
  }

  // Scores the next staged block, whose first key lies at `begin`.
  template <Take kTake>
  __device__ __forceinline__ void take_block(const Query<S>& q, int begin, const Bounds& bounds,
                                             RowOf<S>& row) {
    if (!ready) cuda::mbarrier_wait(&group.full[at.slot], at.parity);
    const uint32_t stage = cuda::mbarrier_address(group.keys[at.slot]);
#pragma unroll
    for (int half = 0; half < kBlockKeys / S::kColumns; ++half) {
      float logits[S::kProducts][S::kColumns / 2];
      issue_products<S>(q, stage, half * S::kColumns, logits);
      const int asked = load_relaxed(&group.flush_request);
      float scores[S::kColumns / 4];
#pragma unroll
      for (float& score : scores) score = q.offset - row.shift;
      if constexpr (kTake == Take::kPlain) score_early(q, logits, scores);
      cuda::wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < S::kProducts; ++i) cuda::wgmma_pin(logits[i]);
      if (half == kBlockKeys / S::kColumns - 1) {
        __syncwarp();
        if (lane() == 0) cuda::mbarrier_arrive(&group.empty[at.slot]);
        at.advance();
        ready = cuda::mbarrier_test(&group.full[at.slot], at.parity);
      }
      if constexpr (kTake == Take::kSample) {
        count_scores<S>(q, logits, notes().scale, scratch().sampled[lane() / 4]);
      } else {
        take_scores<S, kTake == Take::kMasked>(
            q, logits, scores, begin + half * S::kColumns + 2 * (lane() & 3), bounds, row, notes());
        flush_if_due(row, asked);
      }
    }
  }

  // A first look at some keys: the shift, the histogram's scale and, where there is a sample, the gate.
  __device__ __forceinline__ void look_ahead(const Work& work, int64_t query, RowOf<S>& row) {
    Query<S> q;
    load_query<S>(p, work.batch, query, q);
    RowNotes& notes = this->notes();
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
  }

  // Sets the gate from the histogram of a sample, and the scale for what will pass it.
  __device__ __forceinline__ void sample_gate(const Query<S>& q, const Work& work, RowOf<S>& row) {
    RowNotes& notes = this->notes();
    const int samples = work.samples * kBlockKeys;
    const int rank = sample_rank(samples, max(notes.need, 1), max(notes.end, 1));
    __syncwarp();
    for (int i = lane(); i < 8 * kBins; i += 32) scratch().sampled[i / kBins][i % kBins] = 0;
    __syncwarp();
    for (int i = 0; i < work.samples; ++i) take_block<Take::kSample>(q, 0, Bounds{}, row);
    __syncwarp();
    for (int r = 0; r < 8; ++r) {
      const int wanted = __shfl_sync(kWarp, rank, 4 * r);
      if (wanted > samples) continue;
      const Digit at_rank = find_digit<kBins>(scratch().sampled[r], wanted);
      const Digit best = find_digit<kBins>(scratch().sampled[r], 1);
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
    // Blocks [first_plain, last_plain) hold only keys that every query of the tile may choose.
    const int first_plain = (p.keep_first + kBlockKeys - 1) / kBlockKeys;
    const int last = static_cast<int>(work.first_position) + (shares() ? 0 : 1) -
                     static_cast<int>(work.first_query % p.query_tile);
    const int last_plain = careful ? 0 : (last - p.keep_recent) / kBlockKeys;
    RowNotes& notes = this->notes();
    notes.skipped = 0;
    row.sum = row.squares = 0;
    if constexpr (S::kSoftmax) row.forget();
    // A row that no budget leaves a key out of needs no list, only how long it would be: where no score is
    // NaN, as tame inputs have none unless it grows without bound.
    const bool whole = S::kActivation != IndexActivation::kRelu && !careful && !shares() &&
                       row.gate != kInfinity && notes.position < p.k_min;
    if (whole) row.gate = kAboveAll;
    for (int i = 0; i < work.key_blocks;) {
      if (i >= first_plain)
        for (; i < last_plain; ++i) take_block<Take::kPlain>(q, i * kBlockKeys, Bounds{}, row);
      if (i == work.key_blocks) break;
      const Bounds bounds{notes.position, p.keep_first, max(0, notes.end - p.keep_recent - p.keep_first)};
      take_block<Take::kMasked>(q, i++ * kBlockKeys, bounds, row);
    }
    flush(row);
    if (whole) notes.count = notes.position + 1 - kept(notes.position);
  }

  // Leaves a row's list to the kernel that finishes it.
  __device__ __forceinline__ void note_row(const RowView& list, int wanted, Scale scale, int r) {
    KeptRow* rows = reinterpret_cast<KeptRow*>(store.row(static_cast<size_t>(works) * kTileQueries));
    if (lane() == 0)
      rows[first_row + 8 * (warp() % 4) + r] = KeptRow{list.total, wanted, scale.low, scale.per_bin, 0};
  }

  __device__ __forceinline__ void write_row(const RowView& list, int need, Scale scale, int position,
                                            int64_t token) {
    RowWriter writer{p.indices + token * p.capacity, min(p.keep_first, position + 1),
                     max(0, position + 1 - p.keep_recent), position};
    const int written = finish_row(list, need, scale, writer, p.capacity, scratch().finish);
    if (lane() == 0) p.counts[token] = written;
  }

  // Finishes the warp's rows. Returns whether one came out short because its guessed gate was too high: then
  // it loses the gate, and the tile runs again; finished rows close theirs.
  __device__ __forceinline__ bool finish(const Work& work, int64_t query, RowOf<S>& row) {
    RowNotes& notes = this->notes();
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
    const int budget = open ? find_budget<S::kSoftmax>(p, statistic, position) : 0;
    // Any query of a shared row may turn out to have the largest budget.
    const int need = !open ? 0 : shares() ? notes.need : budget - kept(position);
    const bool short_of = open && need > notes.count && row.gate > -kInfinity;
    if (open && (lane() & 3) == 0) p.statistic[first_token + lane() / 4] = statistic;
    if (!keeps()) clear_bitmap(scratch().finish.bitmap, kWindowPairs);  // staged survivors lay there
    for (int r = 0; r < 8; ++r) {
      if (!__shfl_sync(kWarp, static_cast<int>(open && !short_of), 4 * r)) continue;
      const RowView list{store.row(first_row + 8 * (warp() % 4) + r), __shfl_sync(kWarp, notes.count, 4 * r)};
      const int k = __shfl_sync(kWarp, shares() ? budget : need, 4 * r);
      const int last = __shfl_sync(kWarp, position, 4 * r);
      const Scale scale = shared.notes[warp()][4 * r].scale;
      if (keeps())
        note_row(list, k, scale, r);
      else
        write_row(list, k, scale, last, first_token + r);
    }
    row.gate = short_of ? -kInfinity : kInfinity;
    notes.count = 0;
    return __any_sync(kWarp, short_of);
  }

  __device__ __forceinline__ void run_tile(const Work& work, int* again) {
    const int64_t query = work.first_query + threadIdx.x % 128 / kLanesPerRow;
    RowNotes& notes = this->notes();
    notes = RowNotes{{}, 0, 0, -1, 0, 0};
    // Lists that stay lie in the order of queries; others are this warpgroup's.
    first_row =
        keeps() ? first_row_of(p, work) : (int64_t{warp() / 4} * gridDim.x + blockIdx.x) * kTileQueries;
    if (query < p.queries) {
      const int position = notes.position = static_cast<int>(query + p.keys - p.queries);
      if (shares()) {
        notes.end = position - static_cast<int>(query % p.query_tile);
        notes.need = p.again == nullptr ? shared_first_need(p, notes.end) : shared_need(p, notes.end);
      } else {
        notes.end = position + 1;
        notes.need = full_budget(p, position) - kept(position);
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
      tile_barrier(warp() / 4);
      if (*again == 0) break;
    }
  }
};

}  // namespace gsa::fused_select
