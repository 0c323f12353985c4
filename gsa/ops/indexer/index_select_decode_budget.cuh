// Device side of index_select's decode kernel, second third: the quantity a budget rule reads, from what the
// parts of a row have added up, and the number of keys it grants.
#pragma once

#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa::decode {

// A slot's words are zero until they are written: zero itself is written as -0.
__device__ __forceinline__ void publish(Slot& slot, double a, double b, double c) {
  const auto put = [](double& word, double x) {
    cuda::store_relaxed(reinterpret_cast<unsigned long long*>(&word),
                        __double_as_longlong(x == 0 ? -0.0 : x));
  };
  put(slot.a, a);
  put(slot.b, b);
  put(slot.c, c);
}

// Calls visit(slot) for every part of the row that is the lane's, in order, when it is there.
template <typename Visit>
__device__ __forceinline__ void visit_slots(const Slot* slots, int stride, int splits, Visit&& visit) {
  constexpr int kAtOnce = 5;  // loads in flight: for all multiprocessors
  for (int base = threadIdx.x & 31; base < splits; base += 32 * kAtOnce) {
    ulonglong2 first[kAtOnce];
    unsigned long long third[kAtOnce];
    const auto load = [&](int i) {
      const auto* words = reinterpret_cast<const ulonglong2*>(slots + (base + i * 32) * stride);
      first[i] = cuda::load_relaxed(words);
      third[i] = cuda::load_relaxed(&words[1].x);
    };
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (base + i * 32 < splits) load(i);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (base + i * 32 >= splits) break;
      while (first[i].x == 0 || first[i].y == 0 || third[i] == 0) {
        cuda::poll_again();
        load(i);
      }
      visit(__longlong_as_double(first[i].x), __longlong_as_double(first[i].y),
            __longlong_as_double(third[i]));
    }
  }
}

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
  if (lane == 0) publish(ws.slots[static_cast<size_t>(blockIdx.x) * p.queries + query], sum, square, count);
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
    double total = 0, total_weighted = 0;
    for (int w = 0; w < kWarps; ++w) {
      total += shared.peak[w][1];
      total_weighted += shared.peak[w][2];
    }
    publish(ws.slots[static_cast<size_t>(blockIdx.x) * p.queries + query], peak, total, total_weighted);
  }
  __syncthreads();
}

// The quantity the budget rule reads, from the row's parts. Lane 0 of the query's warp gets it.
__device__ inline float find_statistic(const IndexSelectDecodeParams& p, const Workspace& ws,
                                       const Part& part, int query) {
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
    visit_slots(slots, static_cast<int>(p.queries), part.splits,
                [&](double first, double, double) { peak = fmaxf(peak, static_cast<float>(first)); });
  peak = warp_peak(peak);
  if (p.budget == SelectBudget::kMaxScore) return peak;
  double a = 0, b = 0, c = 0;
  visit_slots(slots, static_cast<int>(p.queries), part.splits,
              [&](double first, double second, double third) {
                if (!by_peak) {
                  a += first;
                  b += second;
                  c += third;
                } else if (second > 0) {
                  const double shift = first - peak, factor = exp(shift);
                  a += second * factor;
                  b += (third + second * shift) * factor;
                }
              });
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

// For a budget that does not read it: only one part does then, and leaves the slots zero. By the last warps:
// the first ones are about to wait for records.
__device__ inline void write_statistic(const IndexSelectDecodeParams& p, const Workspace& ws,
                                       const Part& part) {
  const int query = kWarps - 1 - static_cast<int>(threadIdx.x) / 32;
  if (query >= p.queries) return;
  const float statistic = find_statistic(p, ws, part, query);
  const int lane = threadIdx.x & 31;
  if (lane == 0) p.statistic[part.row * p.queries + query] = statistic;
  for (int r = lane; r < part.splits; r += 32)
    ws.slots[static_cast<size_t>(blockIdx.x - part.rank + r) * p.queries + query] = {};
}

}  // namespace gsa::decode
