// Where very many keys share the boundary bin: later rounds divide the interval that they span, as composites
// of score and position, until what is left can be listed.
#pragma once

#include "gsa/ops/sparse_decode/sparse_decode_list.cuh"

namespace gsa::sparse_decode {

// Calls visit(composite) for this part's keys in the boundary.
template <typename Visit>
__device__ __forceinline__ void visit_boundary(const Share& share, const float* scores, float2 bins,
                                               const Bounds& bounds, Visit&& visit) {
  for (int i = threadIdx.x; i < share.words * kWord; i += kThreads) {
    const int position = share.base(i / kWord) + i % kWord;
    if (bounds.classify(bin_of(bins, scores[i]), scores[i], position).equal)
      visit(composite(ordered(scores[i]), position));
  }
}

// All parts of the row call it. Leaves the interval of those that are listed in shared.span, and in
// `histogram` the place in the row's list of this part's candidates of each bin; `arrivals` as in
// row_barrier.
__device__ __noinline__ inline void narrow(const Workspace& ws, State& shared, const Share share, int row,
                                           const float* scores, unsigned* histogram, int arrivals) {
  const int thread = threadIdx.x;
  const float2 bins = shared.bins[0];
  Search& search = shared.search[0];
  Bounds bounds(search);
  unsigned* counter = ws.barrier + row * 2;
  unsigned long long* span = ws.span + row * 2;
  unsigned long long smallest = 0, largest = 0;  // ~smallest
  if (thread < 2) shared.span[thread] = 0;
  __syncthreads();
  visit_boundary(share, scores, bins, bounds, [&](unsigned long long own) {
    smallest = max(smallest, ~own);
    largest = max(largest, own);
  });
  if (largest != 0) {
    atomicMax(&shared.span[0], smallest);
    atomicMax(&shared.span[1], largest);
  }
  row_barrier<true>(
      counter, share.splits, arrivals,
      [&] {
        atomicMax(span, shared.span[0]);
        atomicMax(span + 1, shared.span[1]);
      },
      [] {});
  bounds.low = ~__ldcg(span);
  bounds.high = __ldcg(span + 1);
  for (int round = 0; search.mode == Mode::kBin && round < kLaterRounds; ++round) {
    const unsigned long long width = bounds.high - bounds.low;
    const int shift = max(0, (width >> 32 ? 64 - __clz(static_cast<unsigned>(width >> 32))
                                          : 32 - __clz(static_cast<unsigned>(width))) -
                                 11);
    unsigned* to = ws.later_histogram + (static_cast<size_t>(row) * kLaterRounds + round) * kBins;
    for (int i = thread; i < kBins; i += kThreads) histogram[i] = 0;
    __syncthreads();
    visit_boundary(share, scores, bins, bounds, [&](unsigned long long own) {
      atomicAdd(histogram + static_cast<unsigned>((own - bounds.low) >> shift), 1u);
    });
    __syncthreads();
    for (int i = thread; i < kBins; i += kThreads)
      if (histogram[i]) histogram[i] = atomicAdd(to + i, histogram[i]);
    row_barrier<true>(
        counter, share.splits, arrivals, [] {}, [] {});
    find_bin(to, nullptr, search.candidates, shared, search);
    if (thread == 0) {
      shared.rounds = round + 1;
      if (search.mode == Mode::kAll) search.mode = Mode::kTied;  // all that are left
    }
    __syncthreads();
    if (search.mode == Mode::kTied) {
      bounds.high = --bounds.low;
      break;
    }
    bounds.low += static_cast<unsigned long long>(search.bin) << shift;
    bounds.high = min(bounds.high, bounds.low + ((1ull << shift) - 1));
  }
  if (thread == 0) {
    shared.span[0] = bounds.low;
    shared.span[1] = bounds.high;
  }
  __syncthreads();
}

}  // namespace gsa::sparse_decode
