// index_select for few new tokens over a long cache (decode), in one cooperative launch.
//
// Every CTA takes a part of one row's cache. It streams the part's index keys once, from global memory into
// the registers of mma.m16n8k16 (16 keys by 8 columns of token and head), keeps the scores on the chip and
// counts them into a histogram. The parts of a row then agree on the bin that holds the k-th score, exchange
// the few candidates in it, rank them, and each writes its own selected positions at their place.
#include "gsa/ops/indexer/index_select_decode.h"
#include "gsa/ops/indexer/index_select_decode_budget.cuh"
#include "gsa/ops/indexer/index_select_decode_score.cuh"
#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa {
namespace decode {
namespace {

__device__ __forceinline__ int row_length(const IndexSelectDecodeParams& p, int row) {
  const int keys = static_cast<int>(p.keys);
  return p.lengths ? min(max(__ldg(p.lengths + row), 0), keys) : keys;
}

__device__ __forceinline__ Part make_part(int row, int rank, int splits, int length) {
  const int size = static_cast<int>(part_keys(length, splits));
  return {row, rank, splits, length, min(rank * size, length), min((rank + 1) * size, length)};
}

// Which row this CTA works on, and which of its keys; row -1: none. Every warp finds it for itself.
__device__ Part find_part(const IndexSelectDecodeParams& p) {
  const int lane = threadIdx.x & 31, batch = static_cast<int>(p.batch), cta = blockIdx.x;
  if (!p.lengths) {
    const int length = static_cast<int>(p.keys),
              splits = row_splits(length, p.keys * batch, batch, gridDim.x);
    return cta / splits < batch ? make_part(cta / splits, cta % splits, splits, length)
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
      return make_part(base + from, __shfl_sync(0xffffffffu, rank, from),
                       __shfl_sync(0xffffffffu, splits, from), __shfl_sync(0xffffffffu, length, from));
    }
    first += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {-1, 0, 1, 0, 0, 0};
}

__device__ __forceinline__ Kept kept_of(const IndexSelectDecodeParams& p, const Part& part, int query) {
  return {p.keep_first, p.keep_recent, part.length - static_cast<int>(p.queries) + query};
}

// Counts one query's candidates in [low, high], the interval they span, into the row's next histogram.
__device__ void count_candidates(Shared& shared, unsigned* histogram, const float* scores, int query,
                                 Kept kept, unsigned low, unsigned high, unsigned* target) {
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
__device__ void narrow(const IndexSelectDecodeParams& p, const Workspace& ws, Shared& shared,
                       unsigned* histogram, float* scores, int stride, uint4 first_share, int& arrivals) {
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
      if (search.mode == Mode::kBin)
        find_bin(round + query == 0 ? first_share : load_bins(histogram_of(round, query)), shared, search);
      if (round == 0) {
        mark_first(ws, shared, words, query, row_of(query), kept);
      } else {
        mark_later(ws, shared, words, query, row_of(query), kept);
      }
      if (search.mode != Mode::kBin) continue;
      more |= 1u << query;
      if (part.rank == 0 && round + 1 < kRounds)
        for (int i = threadIdx.x; i < kBins; i += kThreads) histogram_of(round + 1, query)[i] = 0;
    }
    auto publish = [&] {
      for (int query = 0; query < tokens; ++query)
        if (active >> query & 1) publish_tally(ws, shared, query, row_of(query), round, tokens);
    };
    row_barrier(counter, part.splits, arrivals, publish, [] {});
    active = more;
    if (!active) return;
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
    row_barrier(
        counter, part.splits, arrivals, [] {}, [] {});
  }
}

// Leaves the workspace as it was found: zero. Called when no part of the row reads it any more, but for the
// barrier; the last part to leave resets that.
__device__ void clean(const IndexSelectDecodeParams& p, const Workspace& ws, const Part& part) {
  const int tokens = static_cast<int>(p.queries), first = part.row * tokens, thread = threadIdx.x;
  for (int i = part.rank * kThreads + thread; i < tokens * kBins; i += part.splits * kThreads)
    ws.histogram[static_cast<size_t>(first) * kBins + i] = 0;
  if (part.rank == 0) {
    if (thread < tokens) ws.list_count[first + thread] = 0;
    if (thread < tokens * kRounds * 2) ws.bounds[first * kRounds * 2 + thread] = 0;
  }
  if (thread != 0) return;
  unsigned* counter = ws.barrier + part.row * 2;
  if (atomicAdd(counter + 1, 1u) == static_cast<unsigned>(part.splits) - 1) counter[0] = counter[1] = 0;
}

template <int kDim, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    index_select_decode_kernel(const __grid_constant__ IndexSelectDecodeParams p,
                               const __grid_constant__ Workspace ws, int scores_in_shared) {
  extern __shared__ uint4 dynamic[];
  __shared__ Shared shared;
  const Part part = find_part(p);
  if (part.row < 0) return;
  Queries<kDim, kColumns> queries;
  queries.fetch(p, part.row);

  const int tokens = static_cast<int>(p.queries);
  uint4* query_pieces = dynamic;
  float4* head_terms = reinterpret_cast<float4*>(query_pieces + queries.kPieces);
  unsigned* histogram = reinterpret_cast<unsigned*>(head_terms + kColumns * 4);
  float* scores = reinterpret_cast<float*>(histogram + tokens * kBins);
  int stride = (part.end - part.begin + 31) / 32 * 32;
  if (stride * tokens > scores_in_shared) {  // the part's scores go to global memory
    stride = static_cast<int>((p.keys + 63) / 64 * 64);
    scores = ws.scores + static_cast<size_t>(part.row) * tokens * stride + part.begin;
  }
  score_part<kDim, kColumns>(p, part, shared, query_pieces, head_terms, histogram, scores, stride, [&] {
    for (int i = threadIdx.x; i < tokens * kBins; i += kThreads) histogram[i] = 0;
    if (threadIdx.x < kMaxTokens) shared.tally[threadIdx.x] = {};
    if (threadIdx.x == 0) shared.part = part;
    queries.store(query_pieces, head_terms);
    __syncthreads();
    find_range(p, shared, part.row, head_terms);
    __syncthreads();
  });
  __syncthreads();
  const int64_t first_row = static_cast<int64_t>(part.row) * tokens;
  for (int i = threadIdx.x; i < tokens * kBins; i += kThreads)
    if (histogram[i]) atomicAdd(ws.histogram + first_row * kBins + i, histogram[i]);
  const bool fixed = p.rule == DecodeBudget::kFixed;  // its budget does not wait for the statistic
  if (p.rule == DecodeBudget::kEntropy || p.rule == DecodeBudget::kMaxScore) {
    const float scale = p.rule == DecodeBudget::kEntropy && p.log_scale ? expf(*p.log_scale) : 1.0f;
    for (int query = 0; query < tokens; ++query)
      publish_peak(p, ws, shared, scale, scores + query * stride, query);
  } else if (!fixed) {
    publish_moments(p, ws, shared);
  }
  int arrivals = 0;
  row_barrier(
      ws.barrier + part.row * 2, part.splits, arrivals, [] {},
      [&] {
        if (fixed) publish_moments(p, ws, shared);
      });
  const uint4 first_share = load_bins(ws.histogram + first_row * kBins);
  start_search(p, ws, shared);
  __syncthreads();
  narrow(p, ws, shared, histogram, scores, stride, first_share, arrivals);
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  for (int query = 0; query < tokens; ++query) {
    const Search& search = shared.search[query];
    const Words words{scores + query * stride};
    const int64_t row = first_row + query;
    const Placement placement = place(ws, shared, search, words, query, static_cast<int>(row), tokens);
    int* indices = p.indices + row * p.capacity;
    emit_selected(shared, words, search.mode == Mode::kTied, placement, indices);
    for (int i = search.count + part.rank * kThreads + threadIdx.x; i < p.capacity;
         i += part.splits * kThreads)
      indices[i] = -1;
    if (part.rank == 0 && threadIdx.x == 0) p.counts[row] = search.count;
  }
  if (fixed && part.rank == 0) write_statistic(p, ws, part);
  clean(p, ws, part);
}

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

struct Plan {
  int ctas, batch;      // of one launch
  int columns;          // eight-column blocks of the kernel
  size_t fixed_bytes;   // shared memory without the scores
  size_t shared_bytes;  // dynamic shared memory in all
  bool spill;           // a part's scores may not fit shared memory
};

constexpr size_t kSharedLimit = 227 * 1024;

Plan make_plan(const IndexSelectDecodeParams& p, int multiprocessors) {
  Plan plan{};
  plan.ctas = multiprocessors;
  plan.batch = static_cast<int>(p.batch < kMaxRowsPerLaunch ? p.batch : kMaxRowsPerLaunch);
  const int needed = static_cast<int>(p.queries * p.heads + 7) / 8;
  plan.columns = needed == 1 ? 1 : needed <= 4 ? 4 : 8;
  plan.fixed_bytes = static_cast<size_t>(plan.columns) * (p.dim / 32 * 512 + 64) + p.queries * kBins * 4;
  const size_t room = kSharedLimit - sizeof(Shared) - 1024;
  const size_t wanted = static_cast<size_t>(longest_part(p.keys, plan.batch, plan.ctas)) * p.queries * 4;
  plan.spill = plan.fixed_bytes + wanted > room;
  plan.shared_bytes = plan.spill ? room / 16 * 16 : plan.fixed_bytes + wanted;
  return plan;
}

size_t place_workspace(const IndexSelectDecodeParams& p, const Plan& plan, Workspace& ws) {
  const size_t rows = static_cast<size_t>(plan.batch) * p.queries;
  char* base = static_cast<char*>(p.workspace);
  size_t used = 0;
  auto take = [&](auto*& pointer, size_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
    used += aligned(count * sizeof(*pointer));
  };
  take(ws.barrier, plan.batch * 2);
  take(ws.list_count, rows);
  take(ws.bounds, rows * kRounds * 2);
  ws.zeroed_bytes = used + rows * kBins * sizeof(unsigned);
  take(ws.histogram, rows * kBins * kRounds);
  take(ws.slots, static_cast<size_t>(plan.ctas) * p.queries);
  take(ws.list, rows * kCandidates);
  take(ws.scores, plan.spill ? rows * ((p.keys + 63) / 64 * 64) : 0);
  return used;
}

using Kernel = void (*)(IndexSelectDecodeParams, Workspace, int);

template <int kDim>
Kernel pick_kernel(int columns) {
  return columns == 1   ? index_select_decode_kernel<kDim, 1>
         : columns == 4 ? index_select_decode_kernel<kDim, 4>
                        : index_select_decode_kernel<kDim, 8>;
}

cudaError_t launch_rows(const IndexSelectDecodeParams& params, const Plan& plan, cudaStream_t stream) {
  Workspace ws{};
  place_workspace(params, plan, ws);
  const Kernel kernel = params.dim == 32   ? pick_kernel<32>(plan.columns)
                        : params.dim == 64 ? pick_kernel<64>(plan.columns)
                                           : pick_kernel<128>(plan.columns);
  cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  if (!params.workspace_zeroed) {
    error = cudaMemsetAsync(params.workspace, 0, ws.zeroed_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id =
      cudaLaunchAttributeCooperative;  // all parts of a row must be there when they wait for each other
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.ctas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params, ws,
                            static_cast<int>((plan.shared_bytes - plan.fixed_bytes) / sizeof(unsigned)));
}

}  // namespace
}  // namespace decode

bool index_select_decode_supported(const IndexSelectDecodeParams& p) {
  const bool heads = p.heads == 1 || p.heads == 2 || p.heads == 4 || p.heads == 8;
  const bool dim = p.dim == 32 || p.dim == 64 || p.dim == 128;
  return heads && dim && p.query_tile == 1 && p.queries >= 1 && p.queries <= decode::kMaxTokens &&
         p.batch >= 1 && p.keys >= p.queries && p.keys < (int64_t{1} << 30) && p.key_batch_stride % 8 == 0;
}

size_t index_select_decode_workspace_bytes(const IndexSelectDecodeParams& params, int multiprocessors) {
  decode::Workspace ws{};
  return decode::place_workspace(params, decode::make_plan(params, multiprocessors), ws);
}

size_t index_select_decode_zeroed_bytes(const IndexSelectDecodeParams& params, int multiprocessors) {
  decode::Workspace ws{};
  decode::place_workspace(params, decode::make_plan(params, multiprocessors), ws);
  return ws.zeroed_bytes;
}

cudaError_t launch_index_select_decode(const IndexSelectDecodeParams& params, cudaStream_t stream) {
  if (!index_select_decode_supported(params)) return cudaErrorNotSupported;
  int device = 0, multiprocessors = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device))
    return error;
  const decode::Plan plan = decode::make_plan(params, multiprocessors);
  for (int64_t first = 0; first < params.batch; first += plan.batch) {
    IndexSelectDecodeParams rows = params;
    const int64_t query = first * params.queries;
    rows.batch = params.batch - first < plan.batch ? params.batch - first : plan.batch;
    rows.index_query =
        static_cast<const __nv_bfloat16*>(params.index_query) + query * params.heads * params.dim;
    rows.index_key = static_cast<const __nv_bfloat16*>(params.index_key) + first * params.key_batch_stride;
    rows.head_weight += query * params.heads;
    if (params.lengths) rows.lengths += first;
    rows.indices += query * params.capacity;
    rows.counts += query;
    rows.statistic += query;
    if (cudaError_t error = decode::launch_rows(rows, plan, stream)) return error;
  }
  return cudaSuccess;
}

}  // namespace gsa
