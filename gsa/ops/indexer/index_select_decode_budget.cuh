// Device side of index_select's decode kernel, second third: the quantity a budget rule reads, from what the
// parts of a row have added up, and the number of keys it grants.
#pragma once

#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa::decode {

// Adds up what score_part left in shared.moments, in a fixed order: which sets and quads hold a query follows
// from the layout of an accumulator.
__device__ inline void publish_moments(const IndexSelectDecodeParams& p, const Workspace& ws,
                                       Shared& shared) {
  const int lane = threadIdx.x & 31, query = static_cast<int>(threadIdx.x) / 32 - (kWarps - kMaxTokens);
  if (query < 0 || query >= p.queries) return;  // by the last warps: the first waits at a barrier
  const int per_column = 8 / p.heads;           // queries in eight columns
  const bool alone = p.heads == 8 || (p.heads == 4 && p.queries == 1);  // one query in a block of columns
  const int width = alone ? 4 : p.heads == 1 ? 1 : p.heads / 2;         // quads that share a query
  const int set = p.heads == 1 ? query % 2 : query / per_column;
  const int quad = p.heads == 1 ? query / 2 : alone ? 0 : query % per_column * width;
  double sum = 0, square = 0, count = 0;
  if (lane < kWarps) {
    const int sets = moment_sets(kernel_columns(static_cast<int>(p.queries) * p.heads));
    const double* moments = shared.moments + ((lane * sets + set) * 4 + quad) * 3;
    for (int i = 0; i < width; ++i) {
      sum += moments[i * 3];
      square += moments[i * 3 + 1];
      count += moments[i * 3 + 2];
    }
  }
  sum = warp_total(sum);
  square = warp_total(square);
  count = warp_total(count);
  if (lane == 0) {
    Slot& slot = ws.slots[static_cast<size_t>(blockIdx.x) * p.queries + query];
    slot.a = sum;
    slot.b = square;
    slot.c = count;
  }
}

// For the entropy and maximum rules, which need a pass over the scores of their own: the part's maximum of
// x = scale * score, the sum of exp(x - maximum) and of (x - maximum) exp(x - maximum).
__device__ __noinline__ inline void publish_peak(const IndexSelectDecodeParams& p, const Workspace& ws,
                                                 Shared& shared, float scale, const float* scores,
                                                 int query) {
  const Part part = shared.part;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, size = part.end - part.begin;
  float peak = -INFINITY;
  for (int i = threadIdx.x; i < size; i += kThreads)
    if (scores[i] == scores[i]) peak = fmaxf(peak, scale * scores[i]);
  peak = warp_peak(peak);
  if (lane == 0) shared.peak[warp][0] = peak;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, static_cast<float>(shared.peak[w][0]));
  double sum = 0, weighted = 0;
  for (int i = threadIdx.x; i < size; i += kThreads) {
    if (scores[i] != scores[i]) continue;
    const float x = scale * scores[i] - peak, e = expf(x);
    sum += e;
    weighted += static_cast<double>(e) * x;
  }
  sum = warp_total(sum);
  weighted = warp_total(weighted);
  if (lane == 0) {
    shared.peak[warp][1] = sum;
    shared.peak[warp][2] = weighted;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    Slot slot{peak, 0, 0, 0, 0};
    for (int w = 0; w < kWarps; ++w) {
      slot.b += shared.peak[w][1];
      slot.c += shared.peak[w][2];
    }
    ws.slots[static_cast<size_t>(blockIdx.x) * p.queries + query] = slot;
  }
  __syncthreads();
}

// The quantity the budget rule reads, from the row's parts. Lane 0 of the query's warp gets it.
__device__ inline float find_statistic(const IndexSelectDecodeParams& p, const Workspace& ws,
                                       const Part& part, int query) {
  const int lane = threadIdx.x & 31;
  const int position = part.length - static_cast<int>(p.queries) + query;
  const Slot* slots = ws.slots + static_cast<size_t>(blockIdx.x - part.rank) * p.queries + query;
  if (p.budget ==
      SelectBudget::kRandom) {  // the reference's draw: position times the golden ratio, modulo one
    const auto draw = static_cast<unsigned>(position + 1) * 2654435769u;
    return static_cast<float>(draw / 4294967296.0 + 0.5);
  }
  const bool by_peak = p.budget == SelectBudget::kEntropy || p.budget == SelectBudget::kMaxScore;
  float peak = -INFINITY;
  if (by_peak)
    for (int r = lane; r < part.splits; r += 32)
      peak = fmaxf(peak, static_cast<float>(__ldcg(&slots[static_cast<int64_t>(r) * p.queries].a)));
  peak = warp_peak(peak);
  if (p.budget == SelectBudget::kMaxScore) return peak;
  double a = 0, b = 0, c = 0;
  for (int r = lane; r < part.splits; r += 32) {
    const Slot* slot = slots + static_cast<int64_t>(r) * p.queries;
    const double first = __ldcg(&slot->a), second = __ldcg(&slot->b), third = __ldcg(&slot->c);
    if (!by_peak) {
      a += first;
      b += second;
      c += third;
    } else if (second > 0) {
      const double shift = first - peak, factor = exp(shift);
      a += second * factor;
      b += (third + second * shift) * factor;
    }
  }
  a = warp_total(a);
  b = warp_total(b);
  c = warp_total(c);
  if (by_peak) return a > 0 ? static_cast<float>(log(a) - b / a) : 0.0f;
  const double mean = c > 0 ? a / c : 0;
  return c > 0 ? static_cast<float>(fmax(b / c - mean * mean, 0.0)) : 0.0f;
}

// The number of keys the query may get (semantics.md 4), before the length of its past limits it.
__device__ inline int find_budget(const IndexSelectDecodeParams& p, float statistic) {
  if (p.budget == SelectBudget::kFixed) return min(max(p.k_base, p.k_min), p.k_max);
  const bool inverse = p.budget == SelectBudget::kInverse || p.budget == SelectBudget::kMaxScore;
  if (inverse && statistic <= 0) return p.k_max;
  const float ratio = inverse ? *p.running_mean / statistic : statistic / *p.running_mean;
  const float asked = rintf(ratio * static_cast<float>(p.k_base));
  if (asked != asked) return min(max(p.k_base, p.k_min), p.k_max);
  return static_cast<int>(fminf(fmaxf(asked, static_cast<float>(p.k_min)), static_cast<float>(p.k_max)));
}

// Starts the search for each query's boundary score. A fixed budget does not wait for the statistic.
__device__ inline void start_search(const IndexSelectDecodeParams& p, const Workspace& ws, Shared& shared) {
  const int lane = threadIdx.x & 31, query = threadIdx.x / 32;
  if (query >= p.queries) return;
  const Part part = shared.part;
  const int valid = max(part.length - static_cast<int>(p.queries) + query + 1, 0);
  const float statistic = p.budget == SelectBudget::kFixed ? 0.0f : find_statistic(p, ws, part, query);
  if (lane != 0) return;
  const int kept = min(valid, p.keep_first + p.keep_recent);
  Search& search = shared.search[query];
  search.count = min(find_budget(p, statistic), valid);
  search.wanted = search.count - kept;
  search.mode = search.wanted > 0 ? Mode::kBin : Mode::kNone;
  if (part.rank == 0 && p.budget != SelectBudget::kFixed)
    p.statistic[part.row * p.queries + query] = statistic;
}

__device__ inline void write_statistic(const IndexSelectDecodeParams& p, const Workspace& ws,
                                       const Part& part) {
  const int query = threadIdx.x / 32;
  if (query >= p.queries) return;
  const float statistic = find_statistic(p, ws, part, query);
  if ((threadIdx.x & 31) == 0) p.statistic[part.row * p.queries + query] = statistic;
}

}  // namespace gsa::decode
