// Launches index_select's decode kernel: how a problem is laid out on the device.
#include "gsa/cuda/launch.h"
#include "gsa/ops/indexer/index_select_decode.h"
#include "gsa/ops/indexer/index_select_decode_kernel.cuh"

namespace gsa {
namespace decode {
namespace {

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

struct Plan {
  int ctas, batch;      // of one launch
  int columns;          // eight-column blocks of the kernel
  size_t shared_bytes;  // dynamic shared memory in all
  Layout layout;
  bool spill;  // a part's scores may not fit shared memory
};

constexpr size_t kSharedLimit = 227 * 1024;

Plan make_plan(const IndexSelectDecodeParams& p, int multiprocessors) {
  Plan plan{};
  plan.ctas = multiprocessors;
  plan.batch = static_cast<int>(p.batch < kMaxRowsPerLaunch ? p.batch : kMaxRowsPerLaunch);
  plan.columns = kernel_columns(static_cast<int>(p.queries * p.heads));
  const int column_bytes = p.dim / 32 * 512 + 64 + (p.float8_keys ? 32 : 0);  // of eight columns
  // Of equal rows; rows of other lengths may have longer parts, whose scores then go to global memory.
  const int64_t usual = part_keys(p.keys, row_splits(p.keys, p.keys * plan.batch, plan.batch, plan.ctas));
  const int64_t longest = p.lengths ? longest_part(p.keys, plan.batch, plan.ctas) : usual;
  const size_t fixed = static_cast<size_t>(plan.columns) * column_bytes + p.queries * kBins * 4 +
                       kWarps * moment_sets(plan.columns) * 12 * sizeof(double);
  const size_t key_bytes = p.queries * sizeof(float);  // of scores
  // Many bytes in flight, but if possible not so much shared memory that little is left of the first-level
  // cache: the attention that follows inherits how the multiprocessor divides the two, and has its own loads
  // in flight there.
  constexpr size_t kModest = 196 * 1024 - sizeof(Shared) - 1024, kAll = kSharedLimit - sizeof(Shared) - 1024;
  constexpr struct {
    int warps, bytes;
    size_t limit;
  } kRings[] = {{kWarps, kRingBytes, kAll},  // the last that fits counts
                {12, kRingBytes, kModest},
                {kWarps, kRingBytes, kModest},
                {kWarps, 2 * kRingBytes, kModest}};
  size_t taken = 0, limit = 0;
  for (const auto& ring : kRings) {
    const size_t bytes = static_cast<size_t>(ring.warps) * ring.bytes + fixed;
    if (taken != 0 && bytes + usual * key_bytes > ring.limit) continue;
    plan.layout.scoring_warps = ring.warps;
    plan.layout.ring_bytes = ring.bytes;
    taken = bytes;
    limit = ring.limit / 16 * 16;
  }
  plan.spill = taken + longest * key_bytes > limit;
  plan.shared_bytes = plan.spill ? limit : taken + longest * key_bytes;
  plan.layout.scores_in_shared = static_cast<int>((plan.shared_bytes - taken) / sizeof(float));
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
  take(ws.missing, rows);
  take(ws.bounds, rows * kRounds * 2);
  take(ws.slots, static_cast<size_t>(plan.ctas) * p.queries);
  take(ws.records, static_cast<size_t>(plan.ctas) * p.queries);
  take(ws.list, rows * kCandidates);
  ws.zeroed_bytes = used + rows * kBins * sizeof(unsigned);
  take(ws.histogram, rows * kBins * kRounds);
  take(ws.scores, plan.spill ? rows * ((p.keys + 63) / 64 * 64) : 0);
  return used;
}

cudaError_t launch_rows(const IndexSelectDecodeParams& params, const Plan& plan, cudaStream_t stream) {
  Workspace ws{};
  place_workspace(params, plan, ws);
  Layout layout = plan.layout;
  if (!params.lengths) {  // the last launch may have fewer rows than planned, so shorter parts
    layout.splits =
        row_splits(params.keys, params.keys * params.batch, static_cast<int>(params.batch), plan.ctas);
    layout.part_keys = static_cast<int>(part_keys(params.keys, layout.splits));
  }
  const bool solo = params.queries == 1 && params.heads == 4;
  const Kernel kernel = params.float8_keys ? pick_float8_kernel(params.dim, plan.columns, solo)
                        : params.dim == 32 ? pick_kernel<Bf16Keys, 32>(plan.columns, solo)
                        : params.dim == 64 ? pick_kernel<Bf16Keys, 64>(plan.columns, solo)
                                           : pick_kernel<Bf16Keys, 128>(plan.columns, solo);
  cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  if (!params.workspace_zeroed) {
    error = cudaMemsetAsync(params.workspace, 0, ws.zeroed_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id =
      cudaLaunchAttributeCooperative;  // all parts of a row must be there when they wait for each other
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;  // of a kernel before, not a memset
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.ctas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = params.workspace_zeroed ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, params, ws, layout);
}

}  // namespace
}  // namespace decode

bool index_select_decode_supported(const IndexSelectDecodeParams& p) {
  const bool heads = p.heads == 1 || p.heads == 2 || p.heads == 4 || p.heads == 8;
  const bool dim = p.dim == 64 || p.dim == 128 || (p.dim == 32 && !p.float8_keys);
  const int load_elements = p.float8_keys ? 16 : 8;
  return heads && dim && p.query_tile == 1 && p.queries >= 1 && p.queries <= decode::kMaxTokens &&
         p.batch >= 1 && p.keys >= p.queries && p.keys < (int64_t{1} << 30) &&
         p.key_batch_stride % load_elements == 0;
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
  int multiprocessors = 0;
  if (cudaError_t error = cuda::count_multiprocessors(&multiprocessors)) return error;
  const decode::Plan plan = decode::make_plan(params, multiprocessors);
  for (int64_t first = 0; first < params.batch; first += plan.batch) {
    IndexSelectDecodeParams rows = params;
    const int64_t query = first * params.queries;
    rows.batch = params.batch - first < plan.batch ? params.batch - first : plan.batch;
    rows.index_query =
        static_cast<const __nv_bfloat16*>(params.index_query) + query * params.heads * params.dim;
    rows.index_key = static_cast<const char*>(params.index_key) +
                     first * params.key_batch_stride * (params.float8_keys ? 1 : 2);
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
