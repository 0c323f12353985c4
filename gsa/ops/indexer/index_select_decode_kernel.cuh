// The kernel of index_select for few new tokens over a long cache (decode), in one cooperative launch.
//
// Every CTA takes a part of one row's cache. It streams the part's index keys once, through a ring in shared
// memory into products of mma.m16n8k16, keeps the scores on the chip and counts them into a histogram. The
// parts of a row then agree on the bin that holds the k-th score, exchange the few candidates in it, rank
// them, and each writes its own selected positions at their place.
#pragma once

#include "gsa/ops/indexer/index_select_decode_budget.cuh"
#include "gsa/ops/indexer/index_select_decode_place.cuh"
#include "gsa/ops/indexer/index_select_decode_score.cuh"
#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa::decode {

__device__ __forceinline__ int row_length(const IndexSelectDecodeParams& p, int row) {
  const int keys = static_cast<int>(p.keys);
  return p.lengths ? min(max(__ldg(p.lengths + row), 0), keys) : keys;
}

__device__ __forceinline__ Part make_part(int row, int rank, int splits, int length, int size) {
  return {row, rank, splits, length, min(rank * size, length), min((rank + 1) * size, length)};
}

// Which row this CTA works on, and which of its keys; row -1: none. Every warp finds it for itself.
__device__ inline Part find_part(const IndexSelectDecodeParams& p, const Layout& layout) {
  const int lane = threadIdx.x & 31, batch = static_cast<int>(p.batch), cta = blockIdx.x;
  if (!p.lengths) {
    const int row = cta / layout.splits, rank = cta % layout.splits;
    return row < batch ? make_part(row, rank, layout.splits, static_cast<int>(p.keys), layout.part_keys)
                       : Part{-1, 0, 1, 0, 0, 0};
  }
  int64_t total = 0;
  for (int row = lane; row < batch; row += 32) total += row_length(p, row);
  total = warp_total(total);
  int first = 0;
  for (int base = 0; base < batch; base += 32) {
    const int row = base + lane;
    const int length = row < batch ? row_length(p, row) : 0;
    const int splits = row < batch ? row_splits(length, total, batch, gridDim.x) : 0;
    int sum = splits;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    const int rank = cta - (first + sum - splits);
    const unsigned owner = __ballot_sync(0xffffffffu, rank >= 0 && rank < splits);
    if (owner) {
      const int from = __ffs(owner) - 1;
      const int of = __shfl_sync(0xffffffffu, splits, from), all = __shfl_sync(0xffffffffu, length, from);
      return make_part(base + from, __shfl_sync(0xffffffffu, rank, from), of, all,
                       static_cast<int>(part_keys(all, of)));
    }
    first += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {-1, 0, 1, 0, 0, 0};
}

__device__ __forceinline__ Kept kept_of(const IndexSelectDecodeParams& p, const Part& part, int query) {
  return {p.keep_first, p.keep_recent, part.length - static_cast<int>(p.queries) + query};
}

// Counts one query's candidates in [low, high], the interval they span, into the row's next histogram.
__device__ __noinline__ inline void count_candidates(Shared& shared, unsigned* histogram, const float* scores,
                                                     int query, Kept kept, unsigned low, unsigned high,
                                                     unsigned* target) {
  const Part part = shared.part;
  Search& search = shared.search[query];
  const int shift = max(0, 32 - __clz(high - low) - 11);
  for (int i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
  if (threadIdx.x == 0) {
    search.key_low = low;
    search.key_high = high;
    search.shift = shift;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < min(part.end, kept.position + 1) - part.begin; i += kThreads) {
    const float score = scores[i];
    const unsigned key = ordered(score);
    const int at = part.begin + i;
    if (score == score && key >= low && key <= high && at >= kept.first && at <= kept.position - kept.recent)
      atomicAdd(histogram + ((key - low) >> shift), 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads)
    if (histogram[i]) atomicAdd(target + i, histogram[i]);
  __syncthreads();
}

// Narrows each query's search down to a list of candidates, or to one score that they all share: in a single
// round, unless very many scores lie very close. The bins of a later round divide the interval that the
// candidates of the one before span.
__device__ inline void narrow(const IndexSelectDecodeParams& p, const Workspace& ws, Shared& shared,
                              unsigned* histogram, float* scores, int stride, int& arrivals) {
  const Part part = shared.part;
  const int tokens = static_cast<int>(p.queries);
  const size_t rows = static_cast<size_t>(p.batch) * tokens;
  unsigned* counter = ws.barrier + part.row * 2;
  auto row_of = [&](int query) { return part.row * tokens + query; };
  auto histogram_of = [&](int round, int query) {
    return ws.histogram + (round * rows + row_of(query)) * kBins;
  };
  unsigned active = (1u << tokens) - 1;  // queries whose search goes on; the same in every thread and part
  for (int round = 0; active; ++round) {
    unsigned more = 0;
    for (int query = 0; query < tokens; ++query) {
      if (!(active >> query & 1)) continue;
      Search& search = shared.search[query];
      const Words words{scores + query * stride};
      const Kept kept = kept_of(p, part, query);
      if (round == 0) {
        find_bin(histogram_of(0, query), ws.missing + row_of(query), kept.others(0, part.length), shared,
                 search);
        mark_first(ws, shared, words, query, tokens, row_of(query), kept);
      } else {
        if (search.mode == Mode::kBin)
          find_bin(histogram_of(round, query), nullptr, search.candidates, shared, search);
        mark_later(ws, shared, words, query, tokens, row_of(query), kept);
      }
      if (search.mode != Mode::kBin) continue;
      more |= 1u << query;
      if (part.rank == 0 && round + 1 < kRounds)
        for (int i = threadIdx.x; i < kBins; i += kThreads) histogram_of(round + 1, query)[i] = 0;
    }
    auto publish = [&, marked = active] {
      for (int query = 0; query < tokens; ++query)
        if (marked >> query & 1) publish_tally(ws, shared, query, row_of(query), round, tokens);
    };
    active = more;
    if (!active) {
      __syncthreads();
      if (threadIdx.x == 0) publish();
      return;
    }
    row_barrier<true>(counter, part.splits, arrivals, publish, [] {});
    for (int query = 0; query < tokens; ++query) {
      if (!(active >> query & 1)) continue;
      const unsigned* bounds = ws.bounds + (static_cast<size_t>(row_of(query)) * kRounds + round) * 2;
      const unsigned low = ~__ldcg(bounds), high = __ldcg(bounds + 1);
      if (low != high) {
        count_candidates(shared, histogram, scores + query * stride, query, kept_of(p, part, query), low,
                         high, histogram_of(round + 1, query));
        continue;
      }
      Search& search = shared.search[query];
      if (threadIdx.x == 0) {
        search.mode = Mode::kTied;
        search.key_low = search.key_high = low;
        search.shift = 0;
        search.bin = 0;
      }
      __syncthreads();
    }
    row_barrier<true>(
        counter, part.splits, arrivals, [] {}, [] {});
  }
}

// Zeroes this part's share of what only the search used, when all of the row's records are there.
__device__ inline void clean(const IndexSelectDecodeParams& p, const Workspace& ws, const Part& part) {
  const int tokens = static_cast<int>(p.queries), first = part.row * tokens, thread = threadIdx.x;
  for (int i = part.rank * kThreads + thread; i < tokens * kBins; i += part.splits * kThreads)
    ws.histogram[static_cast<size_t>(first) * kBins + i] = 0;
  if (part.rank != 0) return;
  if (thread < tokens) ws.list_count[first + thread] = ws.missing[first + thread] = 0;
  if (thread < tokens * kRounds * 2) ws.bounds[first * kRounds * 2 + thread] = 0;
  if (thread == 0) ws.barrier[part.row * 2] = 0;
}

// Asks for the tokens that are surely selected, by the last eight warps; the first ones tell of the others.
// Whether candidates that are chosen meanwhile are among them does not matter.
__device__ inline void prefetch_selected(const IndexSelectDecodeParams& p, const Part& part, Words words) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - (kWarps - 8);
  if (p.read_next[0].tokens == nullptr || p.read_next[1].tokens == nullptr || warp < 0) return;
  for (int word = threadIdx.x & 31; word * 32 < part.end - part.begin; word += 32)
    for (unsigned bits = *words.selected(word) & 0x01010101u << warp; bits != 0; bits &= bits - 1) {
      const int64_t at = part.begin + word * 32 + __ffs(bits) - 1;
#pragma unroll
      for (const ReadNext& cache : p.read_next)
        cuda::prefetch_bytes(static_cast<const char*>(cache.tokens) + at * cache.token_bytes,
                             cache.token_bytes);
    }
}

// One thread leaves when the block reads nothing of the row's other parts any more: the number of parts that
// had left.
__device__ __forceinline__ unsigned leave(const Workspace& ws, const Part& part) {
  return atomicAdd(ws.barrier + part.row * 2 + 1, 1u);
}

// What the warp that left last zeroes: all that any other part may have been reading.
__device__ inline void clean_records(const Workspace& ws, const Shared& shared, const Part& part, int tokens,
                                     bool slots) {
  const int lane = threadIdx.x & 31;
  const size_t first = static_cast<size_t>(blockIdx.x - part.rank) * tokens;
  for (int i = lane; i < part.splits * tokens; i += 32) {
    ws.records[first + i] = {};
    if (slots) ws.slots[first + i] = {};
  }
  for (int query = 0; query < tokens; ++query)
    for (unsigned i = lane; i < shared.found[query].beyond; i += 32)
      ws.list[static_cast<size_t>(part.row * tokens + query) * kCandidates + i] = 0;
  if (lane == 0) ws.barrier[part.row * 2 + 1] = 0;
}

// Adds a query's histogram to its row's.
__device__ __forceinline__ void add_histogram(Shared& shared, int query, const unsigned* histogram,
                                              unsigned* to) {
  unsigned counted = 0;
#pragma unroll
  for (int i = 0; i < kBinsEach; ++i) {
    const unsigned count = histogram[i * kThreads + threadIdx.x];
    counted += count;
    if (count) atomicAdd(to + i * kThreads + threadIdx.x, count);
  }
  counted = __reduce_add_sync(0xffffffffu, counted);
  if ((threadIdx.x & 31) == 0 && counted) atomicAdd(shared.counted + query, counted);
}

// kSolo: one token of four heads.
template <class Key, int kDim, int kColumns, bool kSolo>
__global__ void __launch_bounds__(kThreads, 1)
    index_select_decode_kernel(const __grid_constant__ IndexSelectDecodeParams p,
                               const __grid_constant__ Workspace ws, const __grid_constant__ Layout layout) {
#ifdef GSA_EMULATE_CUDA
  uint4* dynamic = reinterpret_cast<uint4*>(emulation::shared_base());
  Shared& shared = *reinterpret_cast<Shared*>(emulation::static_shared_base(sizeof(Shared)));
#else
  extern __shared__ uint4 dynamic[];
  __shared__ Shared shared;
#endif
  cuda::wait_previous_kernel();
  const Part part = find_part(p, layout);
  if (part.row < 0) return;
  Queries<Key, kDim, kColumns> queries;
  queries.fetch(p, part.row);  // before the keys, or they queue behind them
  KeyRing<typename Tile<Key, kDim>::Steps> ring(
      shared, dynamic, layout,
      {static_cast<const char*>(p.index_key) + part.row * p.key_batch_stride * Key::kBytes,
       Tile<Key, kDim>::kRowBytes, part, layout.scoring_warps});

  const int tokens = kSolo ? 1 : static_cast<int>(p.queries);
  double* moments = reinterpret_cast<double*>(dynamic + layout.scoring_warps * layout.ring_bytes / 16);
  uint4* query_pieces = reinterpret_cast<uint4*>(moments + kWarps * moment_sets(kColumns) * 12);
  float4* head_terms = reinterpret_cast<float4*>(query_pieces + queries.kPieces);
  float2* column_scales = reinterpret_cast<float2*>(head_terms + kColumns * 4);
  unsigned* histogram = reinterpret_cast<unsigned*>(column_scales + (Key::kScaledQueries ? kColumns * 4 : 0));
  float* scores = reinterpret_cast<float*>(histogram + tokens * kBins);
  int stride = (part.end - part.begin + 31) / 32 * 32;
  if (stride * tokens > layout.scores_in_shared) {  // the part's scores go to global memory
    stride = static_cast<int>((p.keys + 63) / 64 * 64);
    scores = ws.scores + static_cast<size_t>(part.row) * tokens * stride + part.begin;
  }
  for (int i = threadIdx.x; i < tokens * kBins; i += kThreads) histogram[i] = 0;
  if (threadIdx.x < kMaxTokens) {
    shared.tally[threadIdx.x] = {};
    shared.found[threadIdx.x] = {};
    shared.counted[threadIdx.x] = shared.listed[threadIdx.x] = 0;
  }
  if (threadIdx.x == 0) {
    shared.part = part;
    shared.moments = moments;
  }
  queries.store(query_pieces, head_terms);
  __syncthreads();
  find_range(p, shared, part.row, head_terms);
  if constexpr (Key::kScaledQueries)
    scale_queries<queries.kChunks, kColumns>(query_pieces, &column_scales->x);
  __syncthreads();
  if constexpr (kSolo)
    score_part_solo<Key, kDim>(p, part, shared, ring, layout.scoring_warps, query_pieces, head_terms,
                               column_scales, histogram, scores);
  else
    score_part<Key, kDim, kColumns>(p, part, shared, ring, layout.scoring_warps, query_pieces, head_terms,
                                    column_scales, histogram, scores, stride);
  __syncthreads();
  const int64_t first_row = static_cast<int64_t>(part.row) * tokens;
  for (int query = 0; query < tokens; ++query)
    add_histogram(shared, query, histogram + query * kBins, ws.histogram + (first_row + query) * kBins);
  unsigned* counter = ws.barrier + part.row * 2;
  int arrivals = 0;
  const bool fixed = p.budget == SelectBudget::kFixed;  // its budget does not wait for the statistic
  const auto tell_missing = [&] {
    for (int query = 0; query < tokens; ++query) {
      const unsigned missing = kept_of(p, part, query).others(part.begin, part.end) - shared.counted[query];
      if (missing) atomicAdd(ws.missing + first_row + query, missing);
    }
  };
  if (fixed) {  // counts may still be on their way when all parts are here: find_bin waits for them
    row_barrier<false>(counter, part.splits, arrivals, tell_missing, [&] { publish_moments(p, ws, shared); });
  } else {
    if (p.budget == SelectBudget::kEntropy || p.budget == SelectBudget::kMaxScore) {
      const float scale = p.budget == SelectBudget::kEntropy && p.log_scale ? expf(*p.log_scale) : 1.0f;
      for (int query = 0; query < tokens; ++query)
        publish_peak(p, ws, shared, scale, scores + query * stride, query);
    } else {
      publish_moments(p, ws, shared);
    }
    row_barrier<true>(counter, part.splits, arrivals, tell_missing, [] {});
  }
  start_search(p, ws, shared);
  __syncthreads();
  narrow(p, ws, shared, histogram, scores, stride, arrivals);
  cuda::launch_dependents();
  for (int query = 0; query < tokens; ++query) prefetch_selected(p, part, Words{scores + query * stride});
  if (fixed && part.rank == part.splits - 1) write_statistic(p, ws, part);  // often the shortest part
  unsigned left = 0;
  for (int query = 0; query < tokens; ++query) {
    const Search& search = shared.search[query];
    const Words words{scores + query * stride};
    const int64_t row = first_row + query;
    const Placement placement = place(ws, shared, search, words, query, static_cast<int>(row), tokens);
    if (query == tokens - 1) {
      if (threadIdx.x == kThreads - 32) left = leave(ws, part);
      clean(p, ws, part);
    }
    int* indices = p.indices + row * p.capacity;
    emit_selected(shared, words, search.mode == Mode::kTied, placement, indices);
    for (int i = search.count + part.rank * kThreads + threadIdx.x; i < p.capacity;
         i += part.splits * kThreads)
      indices[i] = -1;
    if (part.rank == 0 && threadIdx.x == 0) p.counts[row] = search.count;
  }
  if (threadIdx.x >= kThreads - 32 &&
      __shfl_sync(0xffffffffu, left, 0) == static_cast<unsigned>(part.splits) - 1)
    clean_records(ws, shared, part, tokens, !fixed);
}

using Kernel = void (*)(IndexSelectDecodeParams, Workspace, Layout);

template <class Key, int kDim>
Kernel pick_kernel(int columns, bool solo) {
  if constexpr (Tile<Key, kDim>::kStepKeys == 32)
    if (solo) return index_select_decode_kernel<Key, kDim, 1, true>;
  return columns == 1   ? index_select_decode_kernel<Key, kDim, 1, false>
         : columns == 4 ? index_select_decode_kernel<Key, kDim, 4, false>
                        : index_select_decode_kernel<Key, kDim, 8, false>;
}

// For FP8 keys of 64 or 128 dimensions; a file of its own compiles them.
Kernel pick_float8_kernel(int dim, int columns, bool solo);

}  // namespace gsa::decode
