// Launches the fused decode step.
#include <algorithm>
#include <iterator>

#include "gsa/cuda/launch.h"
#include "gsa/ops/sparse_decode/sparse_decode_kernel.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_sm90.h"

namespace gsa {
namespace sparse_decode {
namespace {

struct Plan {
  int ctas;
  Layout layout;
  Places places;
};

constexpr size_t kSharedLimit = 227 * 1024 - sizeof(State) - 1024;

// Where things lie; `places.end` is beyond the limit where they do not fit.
Plan make_plan(const SparseDecodeParams& params, int multiprocessors) {
  const IndexSelectDecodeParams& p = params.select;
  Plan plan{};
  plan.ctas = multiprocessors;
  const auto batch = static_cast<int>(p.batch);
  plan.layout.splits = row_splits(p.keys, p.keys * batch, batch, plan.ctas);
  plan.layout.part_keys = static_cast<int>(part_keys(p.keys, plan.layout.splits));
  const int64_t longest = p.lengths ? longest_part(p.keys, batch, plan.ctas) : plan.layout.part_keys;
  plan.places.words = static_cast<int>(longest / kWord);
  // Parts with more scores than this have them in the workspace.
  int64_t in_shared = part_keys(p.keys, plan.layout.splits);
  constexpr struct {
    int warps, bytes;
  } kRings[] = {{kWarps, 2 * kRingBytes}, {kWarps, kRingBytes}, {12, kRingBytes}};
  constexpr int kLast = static_cast<int>(std::size(kRings)) - 1;
  for (int i = 0; i <= kLast + 1; ++i) {
    const auto& ring = kRings[std::min(i, kLast)];
    if (i > kLast) {  // as many as fit behind the tiles
      const int64_t excess = (plan.places.end - static_cast<int64_t>(kSharedLimit) + 3) / 4;
      in_shared = std::max<int64_t>((in_shared - excess) / 64 * 64, 0);
    }
    plan.layout.scoring_warps = ring.warps;
    plan.layout.ring_bytes = ring.bytes;
    int used = 0;
    const auto take = [&](int& place, size_t bytes) {
      place = used;
      used += static_cast<int>((bytes + 127) / 128 * 128);
    };
    int rings;
    take(rings, static_cast<size_t>(ring.warps) * ring.bytes);
    take(plan.places.scores, in_shared * sizeof(float));
    plan.places.words_in_shared = static_cast<int>(in_shared / kWord);
    used = std::max(used, kSlots * kTileBytes);
    take(plan.places.histogram, kBins * sizeof(unsigned));
    take(plan.places.bits, 2 * plan.places.words * sizeof(unsigned));
    take(plan.places.list, kMaxList * sizeof(int));
    take(plan.places.keys, kCandidates * sizeof(unsigned));
    take(plan.places.query, kIndexDim / 32 * 512);
    take(plan.places.terms, 4 * sizeof(float4) + 4 * sizeof(float2));
    take(plan.places.moments, kWarps * moment_sets(1) * 12 * sizeof(double));
    take(plan.places.attention_query, kHeads * kQueryStride);
    plan.places.end = used;
    if (static_cast<size_t>(used) <= kSharedLimit) break;
  }
  return plan;
}

size_t place_workspace(const SparseDecodeParams& params, const Plan& plan, Workspace& ws) {
  char* base = static_cast<char*>(params.select.workspace);
  size_t used = 0;
  auto take = [&](auto*& pointer, size_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
    used += (count * sizeof(*pointer) + 255) / 256 * 256;
  };
  const auto rows = static_cast<size_t>(params.select.batch), ctas = static_cast<size_t>(plan.ctas);
  take(ws.barrier, rows * 2);
  take(ws.missing, rows);
  take(ws.slots, ctas);
  take(ws.list, rows * kCandidates);
  take(ws.histogram, rows * kBins);
  take(ws.later_histogram, rows * kLaterRounds * kBins);
  take(ws.span, rows * 2);
  take(ws.partial, ctas * kOutputs);
  take(ws.peaks, ctas * kPieces);
  ws.zeroed_bytes = used;
  if (plan.places.words > plan.places.words_in_shared) take(ws.scores, ctas * plan.places.words * kWord);
  return used;
}

}  // namespace
}  // namespace sparse_decode

bool sparse_decode_supported(const SparseDecodeParams& params, int multiprocessors) {
  const IndexSelectDecodeParams& p = params.select;
  return p.heads == 4 && p.dim == sparse_decode::kIndexDim && p.queries == 1 && p.query_tile == 1 &&
         p.budget == SelectBudget::kFixed && p.k_max <= 2048 && p.batch >= 1 && p.batch <= multiprocessors &&
         multiprocessors <= sparse_decode::kMaxParts && p.keys >= 1 && p.keys < (int64_t{1} << 30) &&
         p.key_batch_stride % (p.float8_keys ? 16 : 8) == 0 && params.dim == sparse_decode::kDim &&
         params.heads == sparse_decode::kHeads && params.groups == sparse_decode::kGroups &&
         static_cast<size_t>(sparse_decode::make_plan(params, multiprocessors).places.end) <=
             sparse_decode::kSharedLimit;
}

size_t sparse_decode_zeroed_bytes(const SparseDecodeParams& params, int multiprocessors) {
  sparse_decode::Workspace ws{};
  sparse_decode::place_workspace(params, sparse_decode::make_plan(params, multiprocessors), ws);
  return ws.zeroed_bytes;
}

size_t sparse_decode_workspace_bytes(const SparseDecodeParams& params, int multiprocessors) {
  sparse_decode::Workspace ws{};
  return sparse_decode::place_workspace(params, sparse_decode::make_plan(params, multiprocessors), ws);
}

cudaError_t launch_sparse_decode(const SparseDecodeParams& params, cudaStream_t stream) {
  using sparse_decode::Plan, sparse_decode::make_plan, sparse_decode::place_workspace,
      sparse_decode::kThreads;
  int multiprocessors = 0;
  if (cudaError_t error = cuda::count_multiprocessors(&multiprocessors)) return error;
  if (!sparse_decode_supported(params, multiprocessors)) return cudaErrorNotSupported;
  const Plan plan = make_plan(params, multiprocessors);
  sparse_decode::Workspace ws{};
  place_workspace(params, plan, ws);
  const auto kernel = params.select.float8_keys ? sparse_decode::sparse_decode_kernel<decode::Float8Keys>
                                                : sparse_decode::sparse_decode_kernel<decode::Bf16Keys>;
  if (cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, plan.places.end))
    return error;
  if (!params.select.workspace_zeroed)
    if (cudaError_t error = cudaMemsetAsync(params.select.workspace, 0, ws.zeroed_bytes, stream))
      return error;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;  // parts wait for each other
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.ctas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = plan.places.end;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = params.select.workspace_zeroed ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, params, ws, plan.layout, plan.places);
}

}  // namespace gsa
