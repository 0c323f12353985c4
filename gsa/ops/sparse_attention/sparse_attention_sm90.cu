// Sparse attention forward on Hopper. A thread block attends tile after tile: 48 or 64 neighbouring queries
// with the heads of one group. The keys that the tile visits, in blocks of 64, are its walk.
//
//   warpgroup 0     gathers: copies each block's 64 rows of K and of V, wherever they lie, into a ring of
//                   stages (cp.async; an mbarrier tells when a stage is full)
//   the others      attend: each holds one or two sets of 64 matrix rows (queries x heads) and goes along the
//                   same stages: S = Q K^T on top of the mask, online softmax in registers, O += P V. A set
//                   skips the blocks that none of its queries wants. Two warpgroups with two sets take turns
//                   in issuing products; three with one are busy enough.
//
// The walk is a built union of per-query rows with bit masks (query_tile 1, sparse_attention_walk.h) or the
// shared row itself (query_tile 64), where only the future is masked.
#include "gsa/cuda/launch.h"
#include "gsa/ops/sparse_attention/sparse_attention_rows_sm90.cuh"

namespace gsa::sparse_attention {
namespace {

// Registers of a thread: all start with an equal share; the gather gives most of its own to the warpgroups
// that hold O and S, one set of it or two.
constexpr int gather_registers(int sets) {
  return sets == 1 ? 32 : 40;
}
constexpr int attend_registers(int sets) {
  return sets == 1 ? 160 : 232;
}
// Threads of a block, at most.
constexpr int threads(int sets) {
  return 128 * (1 + (sets == 1 ? 3 : 2));
}
constexpr float kLog2e = 1.4426950408889634f;

// One set of rows along a walk. Its products come in pairs, O += P V and the next block's scores. All warps
// of the warpgroup issue them together, so what decides between products is the same for all: where the next
// block lies, not whether a warp has seen it arrive.
template <int E>
__device__ __forceinline__ void attend_walk(RowSet<E>& set, Reader<E>& reader, const Rows& rows,
                                            const Visits& visits, int blocks) {
  constexpr int kCount = Stages<E>::kCount;
  if (blocks == 0) return;
  const int first = reader.freed, end = first + blocks;
  reader.wait(first);
  int place = visits.first(first, reader.open(first).masks);
  reader.free_before(min(place, end));
  if (place >= end) return;
  float s[32];
  reader.wait(place);
  Block block = reader.open(place);
  start_scores(s, load_masks(block.masks, rows));
  issue_scores<true>(set, block, s);
  int next = visits.after(place, block.masks);
  bool arrived = false;
  Block following = block;
  uint32_t masks = 0;
  int after = 0;
  const auto open_next = [&] {
    following = reader.open(next);
    masks = load_masks(following.masks, rows);
    after = visits.after(next, following.masks);
  };
  // The stage of a block that lies further on comes free only when the present one is done.
  const auto near = [&] { return next < min(end, place + kCount); };
  // Beside the products, where the next block is there already.
  const auto look_ahead = [&] {
    arrived = __all_sync(0xffffffffu, near() && reader.filled(next));
    if (arrived) open_next();
  };
  look_ahead();
  cuda::wgmma_wait<0>();
  while (true) {
    cuda::wgmma_pin(s);
    uint32_t p[4][4];
    float sums[2];
    exponentials(set.softmax, s, p, sums, rows.scale_log2);
    if (__any_sync(0xffffffffu, too_high(sums))) {
      raise_maximum(set, s, rows.scale_log2);
      exponentials(set.softmax, s, p, sums, rows.scale_log2);
    }
    set.softmax.sum[0] += sums[0], set.softmax.sum[1] += sums[1];
    if (near()) {
      if (!arrived) {
        reader.wait(next);
        open_next();
      }
      // No branch up to the wait for the first of two products, or the compiler serialises all of them.
      issue_values(set, block, p);
      start_scores(s, masks);
      issue_scores<true>(set, following, s);
      cuda::wgmma_wait<1>();
      cuda::wgmma_pin(set.o);
      reader.free_arrived(next);
    } else {
      issue_values(set, block, p);
      cuda::wgmma_wait<0>();
      cuda::wgmma_pin(set.o);
      if (next >= end) break;
      reader.free_before(next);
      reader.wait(next);
      open_next();
      start_scores(s, masks);
      issue_scores<true>(set, following, s);
    }
    block = following;
    place = next;
    next = after;
    look_ahead();
    cuda::wgmma_wait<0>();
  }
}

// The sets of a warpgroup along a shared row.
template <int E, int kSets>
__device__ __forceinline__ void attend_row(RowSet<E> (&sets)[kSets], Reader<E>& reader, const Rows& rows,
                                           int blocks, int keys, int warpgroup, int* turn) {
  if (blocks == 0) return;
  const int end = reader.freed + blocks;
  float s[kSets][32];
  reader.wait(reader.freed);
  Block block = reader.open(reader.freed);
#pragma unroll
  for (int k = 0; k < kSets; ++k) issue_scores<false>(sets[k], block, s[k]);
  cuda::wgmma_wait<0>();
  for (int next = reader.freed + 1;; ++next, keys -= kBlockKeys) {
    const bool more = next < end;
    const bool at_hand = __all_sync(0xffffffffu, more && reader.filled(next));
    Block following = block;
    if (at_hand) following = reader.open(next);
    uint32_t p[kSets][4][4];
    float sums[kSets][2];
    bool low = true;
    const auto probabilities = [&](bool raise) {
#pragma unroll
      for (int k = 0; k < kSets; ++k) {
        cuda::wgmma_pin(s[k]);
        mask_future(s[k], reinterpret_cast<const int32_t*>(block.masks), keys, sets[k].index, rows);
        if (raise) raise_maximum(sets[k], s[k], rows.scale_log2);
        exponentials(sets[k].softmax, s[k], p[k], sums[k], rows.scale_log2);
        low &= !too_high(sums[k]);
      }
    };
    probabilities(false);
    if (!warpgroup_all(warpgroup, low)) {
      // There are no registers to keep the scores.
#pragma unroll
      for (int k = 0; k < kSets; ++k) issue_scores<false>(sets[k], block, s[k]);
      cuda::wgmma_wait<0>();
      probabilities(true);
    }
#pragma unroll
    for (int k = 0; k < kSets; ++k) {
      sets[k].softmax.sum[0] += sums[k][0], sets[k].softmax.sum[1] += sums[k][1];
    }
    if (more && !at_hand) {
      reader.wait(next);
      following = reader.open(next);
    }
    if constexpr (kSets > 1) take_turn(turn, warpgroup);
#pragma unroll
    for (int k = 0; k < kSets; ++k) issue_values(sets[k], block, p[k]);
    if constexpr (kSets == 2) {
      issue_scores<false>(sets[1], following, s[1]);
      cuda::wgmma_wait<1>();
#pragma unroll
      for (int k = 0; k < kSets; ++k) cuda::wgmma_pin(sets[k].o);
    }
    issue_scores<false>(sets[0], following, s[0]);
    if constexpr (kSets > 1) give_turn(turn);
    cuda::wgmma_wait<0>();
    if constexpr (kSets == 1) cuda::wgmma_pin(sets[0].o);
    if (!more) break;
    reader.free_arrived(next);
    block = following;
  }
}

// One warpgroup's sets of a tile, from queries to outputs.
template <int E, bool kSharedRow, int kSets>
__device__ __forceinline__ void attend(const Job& job, const Tile& tile, unsigned char* memory,
                                       Reader<E>& reader, int warpgroup) {
  using Layout = Stages<E>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, log2 = job.packing.padded_log2;
  RowSet<E> sets[kSets];
  unsigned char* queries[kSets];
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
    const int set = warpgroup + k * job.packing.warpgroups;
    queries[k] = memory + set * Layout::kTileBytes;
    sets[k].index = tile.part * job.packing.sets + set;
    sets[k].descriptor = descriptor_low<E>(cuda::shared_address(queries[k]));
    load_queries<E>(job, tile, sets[k].index, queries[k]);
#pragma unroll
    for (int i = 0; i < E / 2; ++i) sets[k].o[i] = 0;
  }
  sync_warpgroup(warpgroup);
  Rows rows{(warp * 16 + lane / 4) >> log2,
            8 >> log2,
            64 >> log2,
            0,
            tile.first_query + job.p.keys - job.p.queries,
            job.p.scale * kLog2e};
  rows.mask = (rows.first_of(sets[0].index) + rows.query) * 8 + lane % 4 * 2;
  // Opaque: the compiler would work them out again for every block.
  asm volatile("" : "+r"(rows.mask), "+r"(rows.next));
  const int end = reader.freed + tile.blocks;
  if constexpr (kSharedRow) {
    int* turn = reinterpret_cast<int*>(memory + Layout::kTurn);
    attend_row(sets, reader, rows, tile.blocks, tile.keys, warpgroup, turn);
  } else {
    const int first = rows.first_of(sets[0].index);
    const Visits visits{rows.queries_of(sets[0].index),
                        (kBlockKeys + 1) * static_cast<int>(sizeof(uint64_t)) + first / 16};
    attend_walk(sets[0], reader, rows, visits, tile.blocks);
  }
  reader.free_before(end);
  // The rows leave through the shared memory of the queries: no product may read those any more.
  sync_warpgroup(warpgroup);
#pragma unroll
  for (int k = 0; k < kSets; ++k) store_rows(job, tile, sets[k], queries[k]);
}

// Thread blocks stay and take tile after tile, so that the gather of the next one runs beside the end of the
// one before, and a warpgroup that is done goes on without the others.
template <int E, bool kSharedRow, int kSets>
__global__ void __launch_bounds__(threads(kSets), 1) attend_tiles(const __grid_constant__ Job job) {
  using Layout = Stages<E>;
  extern __shared__ __align__(1024) unsigned char memory[];
  uint64_t* full = reinterpret_cast<uint64_t*>(memory + Layout::kBarriers);
  uint64_t* empty = full + Layout::kCount;
  Work work{reinterpret_cast<Work::Shared*>(memory + Layout::kWork), job.walks.taken};
  const int items = count_items<kSharedRow>(job);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Layout::kCount; ++i) {
      cuda::mbarrier_init(&full[i], 128);
      cuda::mbarrier_init(&empty[i], 128 * job.packing.warpgroups);
    }
    Work::start(work.shared);
    *reinterpret_cast<int*>(memory + Layout::kTurn) = 0;
    cuda::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    cuda::release_registers<gather_registers(kSets)>();
    cuda::RingPosition<Layout::kCount> ring;
    for (int item = blockIdx.x; item < items; item = work.next()) {
      gather<E, kSharedRow>(job, locate<kSharedRow>(job, item, items), memory, full, empty, ring);
      if (threadIdx.x == 0) work.take();
      __syncwarp();
    }
  } else {
    cuda::acquire_registers<attend_registers(kSets)>();
    // Uniform over the warp, which the compiler cannot see by itself.
    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0) - 1;
    Reader<E> reader{memory, full, empty};
    for (int item = blockIdx.x; item < items; item = work.next()) {
      attend<E, kSharedRow, kSets>(job, locate<kSharedRow>(job, item, items), memory, reader, warpgroup);
      sync_warpgroup(warpgroup);  // the next queries take the place of the rows that left
    }
  }
}

template <int E, bool kSharedRow, int kSets>
cudaError_t launch_kernel(const Job& job, cudaStream_t stream) {
  const auto kernel = attend_tiles<E, kSharedRow, kSets>;
  int multiprocessors = 0;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Stages<E>::kBytes);
  if (error == cudaSuccess) error = cuda::count_multiprocessors(&multiprocessors);
  if (error != cudaSuccess) return error;
  const int64_t items = int64_t(job.tiles) * job.packing.parts * job.p.kv_heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(items, multiprocessors));
  kernel<<<blocks, 128 * (1 + job.packing.warpgroups), Stages<E>::kBytes, stream>>>(job);
  return cudaGetLastError();
}

// Warpgroups hold two sets of a shared row where there are more sets than warpgroups.
template <int E, bool kSharedRow>
cudaError_t launch_attend(const Job& job, cudaStream_t stream) {
  if constexpr (kSharedRow) {
    if (job.packing.sets > job.packing.warpgroups) return launch_kernel<E, true, 2>(job, stream);
  }
  return launch_kernel<E, kSharedRow, 1>(job, stream);
}

}  // namespace
}  // namespace gsa::sparse_attention

namespace gsa {

using namespace sparse_attention;

namespace {

Walks place_walks(const WalkWorkspace& w, const WalkRound& round, void* workspace) {
  unsigned char* base = static_cast<unsigned char*>(workspace);
  return {reinterpret_cast<int32_t*>(base + round.keys),
          reinterpret_cast<uint64_t*>(base + round.masks),
          reinterpret_cast<int32_t*>(base + round.blocks),
          reinterpret_cast<int32_t*>(base + w.notes.overflow),
          reinterpret_cast<int32_t*>(base + w.notes.redo),
          reinterpret_cast<int32_t*>(base + w.notes.redone),
          reinterpret_cast<int32_t*>(base + w.notes.taken),
          reinterpret_cast<int32_t*>(base + round.scratch_keys),
          reinterpret_cast<uint64_t*>(base + round.scratch_masks),
          round.capacity,
          round.segment,
          round.builders,
          &round == &w.long_walks};
}

// The gather multiplies with bytes from row to row in 32 bits.
bool steps_fit(int64_t stride) {
  return stride >= 0 && stride < int64_t{1} << 31;
}

// Every tile walks its own row: no walks to build, and one launch.
cudaError_t attend_shared_rows(Job& job, void* workspace, cudaStream_t stream) {
  job.walks = place_walks({place_notes(job.tiles), {}, {}, 0}, {}, workspace);
  return job.p.dim == 64 ? launch_attend<64, true>(job, stream) : launch_attend<128, true>(job, stream);
}

cudaError_t attend_rounds(Job& job, int tiles, int round_tiles, cudaStream_t stream) {
  for (job.first = 0; job.first < tiles; job.first += round_tiles) {
    job.tiles = min(round_tiles, tiles - job.first);
    cudaError_t error = launch_build_walks(job.p, job.walks, job.packing, job.first, job.tiles, stream);
    if (error == cudaSuccess)
      error =
          job.p.dim == 64 ? launch_attend<64, false>(job, stream) : launch_attend<128, false>(job, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Rounds over all tiles, then over those whose keys did not fit. How many these are is known to the device
// alone: there are rounds for all of them, and thread blocks without a tile return at once.
cudaError_t attend_walks(Job& job, void* workspace, cudaStream_t stream) {
  const int tiles = job.tiles;
  const WalkWorkspace w = walk_workspace(tiles, job.p.keys, job.p.capacity, job.packing.queries);
  job.walks = place_walks(w, w.usual, workspace);
  const cudaError_t error = attend_rounds(job, tiles, w.usual.tiles, stream);
  if (error != cudaSuccess || w.long_walks.tiles == 0) return error;
  job.walks = place_walks(w, w.long_walks, workspace);
  return attend_rounds(job, tiles, w.long_walks.tiles, stream);
}

}  // namespace

size_t sparse_attention_forward_workspace_sm90(const SparseAttentionParams& p) {
  const Packing packing = pack_group(p.heads, p.kv_heads, p.query_tile > 1);
  const int64_t tiles = int64_t(p.batch) * tiles_of(p.queries, packing.queries);
  return p.query_tile == 1 ? walk_workspace(tiles, p.keys, p.capacity, packing.queries).bytes
                           : place_notes(tiles).bytes;
}

cudaError_t launch_sparse_attention_forward_sm90(const SparseAttentionParams& p, void* workspace,
                                                 cudaStream_t stream) {
  const bool served = p.type == ElementType::kBfloat16 && (p.dim == 64 || p.dim == 128) &&
                      p.heads <= 16 * p.kv_heads && p.scale > 0 && steps_fit(p.key_stride[1]) &&
                      steps_fit(p.value_stride[1]) && (p.query_tile == 1 || p.query_tile == kTileQueries);
  if (!served) return cudaErrorNotSupported;
  const Packing packing = pack_group(p.heads, p.kv_heads, p.query_tile > 1);
  const int tiles = p.batch * tiles_of(p.queries, packing.queries);
  if (tiles == 0) return cudaSuccess;
  Job job{p, {}, packing, 0, tiles};
  cudaError_t error = cudaMemsetAsync(workspace, 0, place_notes(tiles).bytes, stream);
  if (error != cudaSuccess) return error;
  error =
      p.query_tile == 1 ? attend_walks(job, workspace, stream) : attend_shared_rows(job, workspace, stream);
  if (error != cudaSuccess) return error;
  return launch_sparse_attention_forward_generic(p, job.walks.redo, packing.queries, stream);
}

}  // namespace gsa
