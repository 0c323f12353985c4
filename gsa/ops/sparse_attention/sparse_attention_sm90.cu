// Sparse attention forward on Hopper. A thread block attends 48 or 64 neighbouring queries with the heads of
// one group. The keys that the tile visits, in blocks of 64, are its walk.
//
//   warpgroup 0     gathers: copies each block's 64 rows of K and of V, wherever they lie, into a ring of
//                   stages (cp.async; an mbarrier tells when a stage is full)
//   the others      attend: each holds one or two sets of 64 matrix rows (queries x heads) and goes along the
//                   same stages: S = Q K^T, mask, online softmax in registers, O += P V. A set skips the
//                   blocks that none of its queries wants. Two warpgroups with two sets take turns in issuing
//                   products; three with one are busy enough.
//
// The walk is a built union of per-query rows with bit masks (query_tile 1, sparse_attention_walk.h) or the
// shared row itself (query_tile 64), where only the future is masked.
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
constexpr int kTurnTries = 40;
constexpr float kLog2e = 1.4426950408889634f;

// Only one warpgroup at a time should issue products, so that the softmax of the one runs beside the products
// of the other. A hint, not a lock: after a while a warpgroup goes on without its turn.
__device__ __forceinline__ void take_turn(int* turn, int warpgroup) {
  if (threadIdx.x % 128 == 0) {
    for (int tries = 0; tries < kTurnTries && atomicCAS_block(turn, 0, 1) != 0; ++tries) continue;
  }
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

__device__ __forceinline__ void give_turn(int* turn) {
  if (threadIdx.x % 128 == 0) atomicExch_block(turn, 0);
}

// The sets of a warpgroup, each at its own place in the walk. Their places stay closer than the ring is long:
// a set that is further ahead, or has no block left, computes in vain until the others have caught up.
template <int E, bool kSharedRow, int kSets>
__device__ __forceinline__ void attend_walk(RowSet<E> (&sets)[kSets], Reader<E, kSharedRow>& reader,
                                            const Rows& rows, int warpgroup, int* turn) {
  int place[kSets], lowest = reader.blocks;
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
    place[k] = reader.first_wanted(rows.queries_of(sets[k].index));
    lowest = min(lowest, place[k]);
  }
  reader.free_before(lowest);
  if (lowest == reader.blocks) return;
  Block blocks[kSets];
  RowMasks masks[kSets];
  float s[kSets][32];
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
    const bool active = place[k] < min(reader.blocks, lowest + Stages<E>::kCount);
    blocks[k] = reader.open(active ? place[k] : lowest);
    blocks[k].active = active;
    issue_scores(sets[k], blocks[k], s[k]);
    masks[k] = masks_of<E, kSharedRow>(sets[k], blocks[k], rows);
  }
  cuda::wgmma_wait<0>();
  do {
    // Here the scores of `blocks` are ready.
    Block following[kSets];
    const int reach = min(reader.blocks, reader.freed + Stages<E>::kCount);
    lowest = reader.blocks;
#pragma unroll
    for (int k = 0; k < kSets; ++k) {
      cuda::wgmma_pin(s[k]);
      if (blocks[k].active)
        place[k] = reader.next_wanted(place[k], rows.first_of(sets[k].index), rows.last_of(sets[k].index));
      lowest = min(lowest, place[k]);
      mask_block<E, kSharedRow>(sets[k], blocks[k], masks[k], rows, s[k]);
    }
    normalise<E, kSets>(sets, s, rows.scale_log2);
#pragma unroll
    for (int k = 0; k < kSets; ++k) {
      following[k] = blocks[k];
      following[k].active = false;
      if (place[k] < reach) following[k] = reader.open(place[k]);
    }
    if constexpr (kSets > 1) take_turn(turn, warpgroup);
#pragma unroll
    for (int k = 0; k < kSets; ++k) issue_values(sets[k], blocks[k], s[k]);
    if constexpr (kSets == 2) {
      issue_scores(sets[1], following[1], s[1]);
      cuda::wgmma_wait<1>();
#pragma unroll
      for (int k = 0; k < kSets; ++k) cuda::wgmma_pin(sets[k].o);
    }
    issue_scores(sets[0], following[0], s[0]);
    if constexpr (kSets > 1) give_turn(turn);
#pragma unroll
    for (int k = 0; k < kSets; ++k) {
      blocks[k] = following[k];
      masks[k] = masks_of<E, kSharedRow>(sets[k], blocks[k], rows);
    }
    cuda::wgmma_wait<0>();
    if constexpr (kSets == 1) cuda::wgmma_pin(sets[0].o);
    reader.free_before(lowest);
  } while (lowest < reader.blocks);
}

template <int E, bool kSharedRow, int kSets>
__device__ void attend(const Job& job, const Tile& tile, unsigned char* memory, uint64_t* full,
                       uint64_t* empty) {
  using Layout = Stages<E>;
  // Uniform over the warp, which the compiler cannot see by itself.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0) - 1;
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
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
  const Rows rows{(warp * 16 + lane / 4) >> log2, 8 >> log2, 64 >> log2,
                  tile.first_query + job.p.keys - job.p.queries, job.p.scale * kLog2e};
  Reader<E, kSharedRow> reader{
      memory,      full,
      empty,       job.walks.masks + int64_t(tile.row) * (job.walks.capacity / kBlockKeys) * kMaskWords,
      tile.blocks, tile.keys};
  attend_walk<E, kSharedRow, kSets>(sets, reader, rows, warpgroup,
                                    reinterpret_cast<int*>(memory + Layout::kTurn));
  reader.free_before(tile.blocks);
  // The rows leave through the shared memory of the queries: no product may read those any more.
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
#pragma unroll
  for (int k = 0; k < kSets; ++k) store_rows(job, tile, sets[k], queries[k]);
}

template <int E, bool kSharedRow, int kSets>
__global__ void __launch_bounds__(threads(kSets), 1) attend_tiles(const __grid_constant__ Job job) {
  using Layout = Stages<E>;
  extern __shared__ __align__(1024) unsigned char memory[];
  uint64_t* full = reinterpret_cast<uint64_t*>(memory + Layout::kBarriers);
  uint64_t* empty = full + Layout::kCount;
  Tile tile;
  if (!locate<kSharedRow>(job, tile)) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Layout::kCount; ++i) {
      cuda::mbarrier_init(&full[i], 128);
      cuda::mbarrier_init(&empty[i], 128 * job.packing.warpgroups);
    }
    *reinterpret_cast<int*>(memory + Layout::kTurn) = 0;
    cuda::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    cuda::release_registers<gather_registers(kSets)>();
    gather<E, kSharedRow>(job, tile, memory, full, empty);
  } else {
    cuda::acquire_registers<attend_registers(kSets)>();
    attend<E, kSharedRow, kSets>(job, tile, memory, full, empty);
  }
}

template <int E, bool kSharedRow, int kSets>
cudaError_t launch_kernel(const Job& job, cudaStream_t stream) {
  const auto kernel = attend_tiles<E, kSharedRow, kSets>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Stages<E>::kBytes);
  if (error != cudaSuccess) return error;
  const int64_t grid = int64_t(job.tiles) * job.packing.parts * job.p.kv_heads;
  kernel<<<static_cast<unsigned>(grid), 128 * (1 + job.packing.warpgroups), Stages<E>::kBytes, stream>>>(job);
  return cudaGetLastError();
}

// Warpgroups hold two sets of rows where there are more sets than warpgroups.
template <int E, bool kSharedRow>
cudaError_t launch_attend(const Job& job, cudaStream_t stream) {
  return job.packing.sets > job.packing.warpgroups ? launch_kernel<E, kSharedRow, 2>(job, stream)
                                                   : launch_kernel<E, kSharedRow, 1>(job, stream);
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
          reinterpret_cast<int32_t*>(base + round.scratch_keys),
          reinterpret_cast<uint64_t*>(base + round.scratch_masks),
          round.capacity,
          round.segment,
          round.builders,
          &round == &w.long_walks};
}

// Every tile walks its own row: no walks to build, and one launch.
cudaError_t attend_shared_rows(Job& job, void* workspace, cudaStream_t stream) {
  job.walks = place_walks({place_notes(job.tiles), {}, {}, 0}, {}, workspace);
  return job.p.dim == 64 ? launch_attend<64, true>(job, stream) : launch_attend<128, true>(job, stream);
}

cudaError_t attend_rounds(Job& job, int tiles, int round_tiles, cudaStream_t stream) {
  for (job.first = 0; job.first < tiles; job.first += round_tiles) {
    job.tiles = min(round_tiles, tiles - job.first);
    cudaError_t error =
        launch_build_walks(job.p, job.walks, job.packing.queries, job.first, job.tiles, stream);
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
                      p.heads <= 16 * p.kv_heads && p.scale > 0 &&
                      (p.query_tile == 1 || p.query_tile == kTileQueries);
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
