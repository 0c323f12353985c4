// One decode step in one cooperative launch: index_select and sparse_attention of one token a row.
#pragma once

#include "gsa/ops/indexer/index_select_decode_kernel.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_combine.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_narrow.cuh"

namespace gsa::sparse_decode {

// Zeroes what the search used, when all parts have told what they found; by the parts that finish pieces.
__device__ inline void clean_search(const Workspace& ws, const State& shared, const Part& part,
                                    const Pieces& pieces, unsigned long long* candidates) {
  const int each = (kPieces + part.splits - 1) / part.splits, finishers = (kPieces + each - 1) / each;
  const int thread = threadIdx.x;
  const Search& search = shared.search[0];
  for (int i = part.rank * kThreads + thread; i < kBins; i += finishers * kThreads)
    ws.histogram[static_cast<size_t>(part.row) * kBins + i] = 0;
  for (int i = part.rank * kThreads + thread; i < shared.rounds * kBins; i += finishers * kThreads)
    ws.later_histogram[static_cast<size_t>(part.row) * kLaterRounds * kBins + i] = 0;
  if (part.rank != 0) return;
  if (search.mode == Mode::kList && thread < static_cast<int>(search.candidates)) candidates[thread] = 0;
  if (thread == 0) ws.barrier[part.row * 2] = ws.missing[part.row] = 0;
  if (thread < 2) ws.span[part.row * 2 + thread] = 0;
}

// The workspace may have left the second-level cache since the last launch: brings this part's share of it
// back while index keys are on their way.
__device__ inline void prefetch_workspace(const Workspace& ws, const Share& share, int row) {
  constexpr int kLine = 128;
  const int thread = threadIdx.x;
  const Pieces pieces(share);
  const size_t first_cta = blockIdx.x - share.rank, totals = static_cast<size_t>(pieces.count) * share.splits;
  const auto fetch = [&](const void* from, size_t bytes, int first, int step) {
    for (size_t i = first; i * kLine < bytes; i += step)
      cuda::prefetch_line(static_cast<const char*>(from) + i * kLine);
  };
  fetch(ws.partial + first_cta * kOutputs + pieces.first * share.splits * kPiece,
        totals * kPiece * sizeof(float), thread, kThreads);
  fetch(ws.peaks + first_cta * kPieces + pieces.first * share.splits, totals * sizeof(float2), thread,
        kThreads);
  const int of_row = share.rank + thread * share.splits;  // lines of the row's
  fetch(ws.histogram + static_cast<size_t>(row) * kBins, kBins * sizeof(unsigned), of_row,
        kThreads * share.splits);
  fetch(ws.list + static_cast<size_t>(row) * kCandidates, 64 * sizeof(unsigned long long), of_row,
        kThreads * share.splits);
  if (thread == 0) cuda::prefetch_line(ws.barrier + row * 2);
}

template <class Key>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_decode_kernel(const __grid_constant__ SparseDecodeParams params,
                         const __grid_constant__ Workspace ws, const __grid_constant__ Layout layout,
                         const __grid_constant__ Places places) {
#ifdef GSA_EMULATE_CUDA
  char* dynamic = reinterpret_cast<char*>(emulation::shared_base());
  State& shared = *reinterpret_cast<State*>(emulation::static_shared_base(sizeof(State)));
#else
  extern __shared__ uint4 raw[];
  char* dynamic = reinterpret_cast<char*>(raw);
  __shared__ State shared;
#endif
  cuda::wait_previous_kernel();
  const IndexSelectDecodeParams& p = params.select;
  const Part part = find_part(p, layout);
  if (part.row < 0) return;
  const Share share(part);
  const int thread = threadIdx.x, warp = thread / 32;
  Queries<Key, kIndexDim, 1> queries;
  queries.fetch(p, part.row);
  KeyRing<WordSteps<Key>> ring(
      shared, dynamic, layout,
      {static_cast<const char*>(p.index_key) + part.row * p.key_batch_stride * Key::kBytes, share,
       layout.scoring_warps});
  const bool spilled = share.words > places.words_in_shared;
  float* scores = spilled ? ws.scores + static_cast<size_t>(blockIdx.x) * places.words * kWord
                          : reinterpret_cast<float*>(dynamic + places.scores);
  unsigned* histogram = reinterpret_cast<unsigned*>(dynamic + places.histogram);
  unsigned* above_bits = reinterpret_cast<unsigned*>(dynamic + places.bits);
  unsigned* equal_bits = above_bits + places.words;
  uint4* query_pieces = reinterpret_cast<uint4*>(dynamic + places.query);
  float4* head_terms = reinterpret_cast<float4*>(dynamic + places.terms);
  float2* column_scales = reinterpret_cast<float2*>(head_terms + 4);
  char* attention_query = dynamic + places.attention_query;
  List list{reinterpret_cast<int*>(dynamic + places.list), reinterpret_cast<unsigned*>(dynamic + places.keys),
            0, 0, kTile};

  copy_query(attention_query, params.query, part.row);
  prefetch_workspace(ws, share, part.row);
  for (int i = thread; i < kBins; i += kThreads) histogram[i] = 0;
  const KeptTokens kept(p, part.length);
  if (thread == 0) {
    shared.part = part;
    shared.moments = reinterpret_cast<double*>(dynamic + places.moments);
    shared.missing_here = shared.rounds = 0;
    Search& search = shared.search[0];
    search.count = min(find_budget(p, 0.0f), part.length);
    search.wanted = search.count - kept.count;
    search.mode = search.wanted > 0 ? Mode::kBin : Mode::kNone;
    for (int i = 0; i < kSlots; ++i) cuda::mbarrier_init(shared.arrived + i, 1);
    cuda::mbarrier_init(&shared.listed, kGroups * 32);
    cuda::mbarrier_init(&shared.ranked, 1);
    cuda::mbarrier_init_fence();
  }
  queries.store(query_pieces, head_terms);
  __syncthreads();
  find_range(p, shared, part.row, head_terms);
  if constexpr (Key::kScaledQueries) scale_queries<queries.kChunks, 1>(query_pieces, &column_scales->x);
  __syncthreads();
  score_words<Key>(p, share, shared, ring, layout.scoring_warps, query_pieces, head_terms, column_scales,
                   histogram, scores);
  cuda::cp_async_wait<0>();  // the query
  __syncthreads();
  cuda::launch_dependents();

  // This part's counts join the row's; what was there before is where this part's keys of a bin go.
  unsigned before[kBinsEach];
  unsigned* row_histogram = ws.histogram + static_cast<size_t>(part.row) * kBins;
#pragma unroll
  for (int i = 0; i < kBinsEach; ++i) {
    const unsigned count = histogram[i * kThreads + thread];
    before[i] = count ? atomicAdd(row_histogram + i * kThreads + thread, count) : 0;
  }
  __syncthreads();
  unsigned* counter = ws.barrier + part.row * 2;
  if (thread == 0) {
    atomicAdd(counter, 1u);
    if (shared.missing_here) atomicAdd(ws.missing + part.row, shared.missing_here);
  }
  publish_moments(p, ws, shared);
  const Tokens tokens{
      static_cast<const char*>(params.key) + static_cast<int64_t>(part.row) * params.key_batch_stride * 2,
      static_cast<const char*>(params.value) +
          static_cast<int64_t>(part.row) * params.value_batch_stride * 2};
  Search& search = shared.search[0];
#pragma unroll
  for (int i = 0; i < kBinsEach; ++i) histogram[i * kThreads + thread] = before[i];
  if (thread == 0)
    while (cuda::load_relaxed(counter) < static_cast<unsigned>(part.splits)) cuda::poll_again();
  __syncthreads();
  const int chosen_by_score = max(part.length - kept.count, 0);
  find_bin(row_histogram, ws.missing + part.row, chosen_by_score, shared, search);
  Bounds bounds(search);
  if (search.mode == Mode::kBin) {
    narrow(ws, shared, share, part.row, scores, histogram, 1);
    bounds.low = shared.span[0];
    bounds.high = shared.span[1];
  }
  const bool listed = search.mode == Mode::kList;
  unsigned long long* candidates = ws.list + static_cast<size_t>(part.row) * kCandidates;
  const auto push = [&](unsigned key, int position) {  // tells the row's other parts
    if (listed)
      cuda::store_relaxed(candidates + atomicAdd(histogram + search.bin, 1u), composite(key, position));
  };
  mark_words(share, scores, shared.bins[0], bounds, above_bits, equal_bits, push);
  __syncthreads();
  make_list(shared, kept, share, scores, above_bits, equal_bits, list);
  const bool direct = share.words <= kFewWords;
  if (direct) {
    if (list.entries <= kSlots * kTile) list.each = max((list.entries + kSlots - 1) / kSlots, 1);
    copy_tile(dynamic, tokens, list, warp / kGroups);
  } else if (warp % kGroups == 0) {
    request_tile(shared, dynamic, tokens, list, warp / kGroups);
  }
  if (listed && warp >= kWarps - kGroups) rank_candidates(shared, candidates);
  attend(shared, dynamic, tokens, list, attention_query, direct, params.scale * 1.44269504f);
  __syncthreads();
  tell_partial(ws, shared, dynamic, share, list);
  if (part.rank == part.splits - 1) write_statistic(p, ws, part);
  if (part.rank == 0 && thread == 0) p.counts[part.row] = shared.search[0].count;
  finish(ws, share, dynamic + kGroups * kGroupHeads * kOutStride * 4, params.out, params.lse, part.row,
         [&](const Pieces& pieces) { clean_search(ws, shared, part, pieces, candidates); });
}

}  // namespace gsa::sparse_decode
