// Builds the walks of per-query selections (sparse_attention_walk.h).
//
// A thread block takes one tile of up to 64 queries. It passes over the keys in ranges that fit in shared
// memory:
//   mark      every row sets its bit in the query set of each key it selected (rows are sorted, so each
//             keeps a cursor);
//   collect   keys with a set bit are appended, ascending, to a list in scratch memory;
// and then orders the list:
//   sort      by which quarters of the tile (16 queries) want a key, so that whole blocks can be skipped;
//   emit      blocks of 64 keys, the query sets transposed to one mask of keys for each query.
// A long walk is sorted and emitted in segments, each when it has grown long enough.
// No walk depends on the order in which threads run: atomics only set bits.
#include "gsa/cuda/reduction.h"
#include "gsa/ops/sparse_attention/sparse_attention_walk.h"

namespace gsa::sparse_attention {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRange = kWalkRange;  // keys marked at a time: 96 KiB of query sets, two thread blocks on an SM
constexpr int kKeysPerWarp = kRange / kWarps;
constexpr int kLanesPerRow = kThreads / kTileQueries;
constexpr int kChunk = kLanesPerRow * 4;  // row entries of one read
constexpr int kReads = 4;                 // in flight
constexpr int kSpare = 0x7fffffff;
constexpr int kClasses = 16;  // of keys: sets of quarters that want one
constexpr int kMaxBlocks = kMaxSegment / kBlockKeys;

struct Shared {
  uint32_t low[kRange];   // query set of a key, queries 0..31; later the classes of the collected keys
  uint32_t high[kRange];  // queries 32..63
  int counts[kWarps];
  int in_class[kWarps][kClasses];
  uint16_t visits[kMaxBlocks];  // when each block of the sorted list is visited
  uint8_t wants[kMaxBlocks];    // which quarters want each block, in the order of visits
};
static_assert(sizeof(Shared::low) + sizeof(Shared::high) >= kMaxSegment,
              "one class byte for each key of a segment");
static_assert(kLongSegment + kRange <= kMaxSegment);

// A row of indices as its 8 lanes read it.
struct RowReader {
  const int32_t* entries;
  int count;   // entries in the row
  int limit;   // keys from here on are in the query's future
  int cursor;  // entries before it lie in earlier ranges
  bool vectors;

  __device__ int4 load(int start) const {
    const int i = start + 4 * (threadIdx.x % kLanesPerRow);
    if (vectors && i + 4 <= count) return *reinterpret_cast<const int4*>(entries + i);
    int4 r;
    r.x = i + 0 < count ? entries[i + 0] : kSpare;
    r.y = i + 1 < count ? entries[i + 1] : kSpare;
    r.z = i + 2 < count ? entries[i + 2] : kSpare;
    r.w = i + 3 < count ? entries[i + 3] : kSpare;
    return r;
  }
};

__device__ RowReader open_row(const SparseAttentionParams& p, int batch, int query, int end) {
  RowReader row{};
  if (query >= end) return row;
  const int64_t r = int64_t(batch) * p.rows + query;
  row.entries = p.indices + r * p.capacity;
  row.count = min(p.counts[r], p.capacity);
  row.limit = query + p.keys - p.queries + 1;
  row.vectors = p.capacity % 4 == 0 && reinterpret_cast<uintptr_t>(p.indices) % 16 == 0;
  return row;
}

__device__ void mark_range(Shared& shared, RowReader& row, int begin, int end) {
  const int query = threadIdx.x / kLanesPerRow;
  uint32_t* sets = query < 32 ? shared.low : shared.high;
  const uint32_t bit = 1u << (query & 31);
  const int stop = min(end, row.limit);
  const auto mark = [&](int key) {
    if (key >= begin && key < stop) atomicOr(&sets[key - begin], bit);
  };
  bool more = row.cursor < row.count;
  while (__any_sync(0xffffffffu, more)) {
    int4 e[kReads];
#pragma unroll
    for (int u = 0; u < kReads; ++u)
      e[u] = more ? row.load(row.cursor + u * kChunk) : make_int4(kSpare, kSpare, kSpare, kSpare);
#pragma unroll
    for (int u = 0; u < kReads; ++u) {
      mark(e[u].x), mark(e[u].y), mark(e[u].z), mark(e[u].w);
      // The last entry of the chunk tells whether all of it lies before the end of the range.
      const int last = __shfl_sync(0xffffffffu, e[u].w, kLanesPerRow - 1, kLanesPerRow);
      more = more && last < end;
      if (more) row.cursor += kChunk;
    }
    more = more && row.cursor < row.count;
  }
}

// Appends the marked keys of a range; returns how many there are, or would be if `room` held them.
__device__ int collect_range(Shared& shared, int begin, int found, int32_t* keys, uint64_t* masks, int room) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first = warp * kKeysPerWarp;
  constexpr int kSteps = kKeysPerWarp / 32;
  uint32_t present[kSteps];
  int mine = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int i = first + step * 32 + lane;
    present[step] = __ballot_sync(0xffffffffu, (shared.low[i] | shared.high[i]) != 0);
    mine += __popc(present[step]);
  }
  if (lane == 0) shared.counts[warp] = mine;
  __syncthreads();
  const int count = lane < kWarps ? shared.counts[lane] : 0;
  const int before = __shfl_sync(0xffffffffu, cuda::warp_exclusive_sum(count), warp);
  const int total = __reduce_add_sync(0xffffffffu, count);
  int position = found + before;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int i = first + step * 32 + lane;
    const int at = position + __popc(present[step] & ((1u << lane) - 1));
    if ((present[step] >> lane & 1) && at < room) {
      keys[at] = begin + i;
      masks[at] = uint64_t(shared.low[i]) | uint64_t(shared.high[i]) << 32;
    }
    position += __popc(present[step]);
  }
  __syncthreads();
  return total;
}

// Which quarters of the tile want a key: 1 .. 15.
__device__ int quarters_of(uint64_t set) {
  return int((set & 0xffff) != 0) | int((set >> 16 & 0xffff) != 0) << 1 |
         int((set >> 32 & 0xffff) != 0) << 2 | int((set >> 48) != 0) << 3;
}

// The blocks of the sorted list are visited in a mixed order, every eighth part of the list in turn: runs of
// blocks that only one quarter wants would leave the warpgroups of the other quarters without work.
constexpr int kParts = 8;
__device__ int visit_of(int block, int blocks) {
  const int step = (blocks + kParts - 1) / kParts, longest = (blocks + step - 1) / step;
  const int column = block % step, columns_longest = blocks - step * (longest - 1);
  return column * longest - max(0, column - columns_longest) + block / step;
}

// Writes to `order` the places of the collected keys by class, ascending inside a class, blocks as they are
// visited. Each warp counts, then places, the keys of one stretch.
__device__ void sort_by_class(Shared& shared, const uint64_t* masks, int found, int32_t* order) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint8_t* classes = reinterpret_cast<uint8_t*>(shared.low);
  const int blocks = (found + kBlockKeys - 1) / kBlockKeys;
  const int stretch = (found + kThreads - 1) / kThreads * 32, begin = warp * stretch;
  const int end = min(begin + stretch, found);
  for (int i = threadIdx.x; i < found; i += kThreads) classes[i] = quarters_of(masks[i]);
  for (int i = threadIdx.x; i < blocks; i += kThreads) shared.visits[i] = uint16_t(visit_of(i, blocks));
  int* mine = shared.in_class[warp];
  if (lane < kClasses) mine[lane] = 0;
  __syncthreads();
  // Of 32 keys, each with the others of its class; the lowest lane of a class keeps the count.
  for (int base = begin; base < end; base += 32) {
    const int key_class = base + lane < end ? classes[base + lane] : 0;
    const uint32_t peers = __match_any_sync(0xffffffffu, key_class);
    if ((peers & ((1u << lane) - 1)) == 0) mine[key_class] += __popc(peers);
    __syncwarp();
  }
  __syncthreads();
  int before = 0, total = 0;  // of class `lane`: in the stretches before, in all
  if (lane > 0 && lane < kClasses) {
    for (int w = 0; w < kWarps; ++w) {
      const int count = shared.in_class[w][lane];
      before += w < warp ? count : 0;
      total += count;
    }
  }
  const int position = cuda::warp_exclusive_sum(total) + before;
  __syncthreads();
  if (lane < kClasses) mine[lane] = position;
  __syncwarp();
  for (int base = begin; base < end; base += 32) {
    const int i = base + lane, key_class = i < end ? classes[i] : 0;
    const uint32_t peers = __match_any_sync(0xffffffffu, key_class);
    const int rank = __popc(peers & ((1u << lane) - 1)), at = mine[key_class] + rank;
    if (i < end) order[shared.visits[at / kBlockKeys] * kBlockKeys + at % kBlockKeys] = i;
    __syncwarp();
    if (rank == 0) mine[key_class] = at + __popc(peers);
    __syncwarp();
  }
  __syncthreads();
}

// Transposes 32 x 32 bits: bit c of lane r becomes bit r of lane c.
__device__ uint32_t transpose_bits(uint32_t x) {
  const int lane = threadIdx.x % 32;
  uint32_t keep = 0x0000ffffu;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2, keep ^= keep << offset) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, x, offset);
    x = lane & offset ? (x & ~keep) | ((other >> offset) & keep) : (x & keep) | ((other << offset) & ~keep);
  }
  return x;
}

// One warp writes one block: replaces places by keys and transposes 64 query sets. Spare places get the
// block's first key. Returns the quarters that want the block.
__device__ int emit_block(int32_t* keys, uint64_t* masks, const int32_t* found_keys,
                          const uint64_t* found_masks, int count) {
  const int lane = threadIdx.x % 32;
  uint32_t low[2] = {0, 0}, high[2] = {0, 0};
  int first = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = half * 32 + lane;
    int key = first;
    if (i < count) {
      const int place = keys[i];
      key = found_keys[place];
      low[half] = uint32_t(found_masks[place]);
      high[half] = uint32_t(found_masks[place] >> 32);
    }
    if (half == 0) {
      first = __shfl_sync(0xffffffffu, key, 0);
      if (i >= count) key = first;
    }
    keys[i] = key;
  }
  masks[lane] = transpose_bits(low[0]) | uint64_t(transpose_bits(low[1])) << 32;
  masks[lane + 32] = transpose_bits(high[0]) | uint64_t(transpose_bits(high[1])) << 32;
  const uint32_t any_low = __reduce_or_sync(0xffffffffu, low[0] | low[1]);
  const uint32_t any_high = __reduce_or_sync(0xffffffffu, high[0] | high[1]);
  const uint64_t any = any_low | uint64_t(any_high) << 32;
  if (lane == 0) masks[kBlockKeys] = any;
  return quarters_of(any);
}

// Writes for each block and quarter how many blocks further on the next one lies that the set of rows with
// the quarter's queries wants, a byte each. A set may have several quarters.
__device__ void emit_distances(const Shared& shared, uint64_t* masks, int blocks, int set_quarters) {
  for (int block = threadIdx.x; block < blocks; block += kThreads) {
    uint32_t distances = 0;
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int set = ((1 << set_quarters) - 1) << quarter / set_quarters * set_quarters;
      int next = block + 1;
      while (next < blocks && next - block < 255 && !(shared.wants[next] & set)) ++next;
      distances |= uint32_t(next - block) << (8 * quarter);
    }
    masks[int64_t(block) * kMaskWords + kBlockKeys + 1] = distances;
  }
}

// Sorts what was found and writes it as blocks from `keys` and `masks` on; returns how many.
__device__ int emit_segment(Shared& shared, int32_t* keys, uint64_t* masks, const int32_t* found_keys,
                            const uint64_t* found_masks, int found, int set_quarters) {
  const int blocks = (found + kBlockKeys - 1) / kBlockKeys;
  sort_by_class(shared, found_masks, found, keys);
  for (int block = threadIdx.x / 32; block < blocks; block += kWarps) {
    const int visit = shared.visits[block];
    const int quarters = emit_block(keys + visit * kBlockKeys, masks + int64_t(visit) * kMaskWords,
                                    found_keys, found_masks, found - block * kBlockKeys);
    if (threadIdx.x % 32 == 0) shared.wants[visit] = uint8_t(quarters);
  }
  __syncthreads();
  emit_distances(shared, masks, blocks, set_quarters);
  __syncthreads();
  return blocks;
}

__global__ void __launch_bounds__(kThreads, 2)
    build_walks(SparseAttentionParams p, Walks walks, Packing packing, int first, int tiles) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (blockIdx.x == 0 && threadIdx.x == 0) *walks.taken = 0;
  const int tile_queries = packing.queries, tiles_per_batch = tiles_of(p.queries, tile_queries);
  int32_t* found_keys = walks.scratch_keys + int64_t(blockIdx.x) * walks.segment;
  uint64_t* found_masks = walks.scratch_masks + int64_t(blockIdx.x) * walks.segment;
  for (int place = blockIdx.x; place < tiles; place += gridDim.x) {
    const int tile = tile_at(walks, first + place);
    if (tile < 0) return;
    const int batch = tile / tiles_per_batch, query = tile % tiles_per_batch * tile_queries;
    int32_t* keys = walks.keys + int64_t(place) * walks.capacity;
    uint64_t* masks = walks.masks + int64_t(place) * (walks.capacity / kBlockKeys) * kMaskWords;
    const int end = min(query + tile_queries, p.queries);
    const int limit = end + p.keys - p.queries;
    RowReader row = open_row(p, batch, query + threadIdx.x / kLanesPerRow, end);
    int found = 0, blocks = 0;
    for (int begin = 0; begin < limit; begin += kRange) {
      uint4* sets = reinterpret_cast<uint4*>(shared.low);
      for (int i = threadIdx.x; i < 2 * kRange / 4; i += kThreads) sets[i] = make_uint4(0, 0, 0, 0);
      __syncthreads();
      mark_range(shared, row, begin, begin + kRange);
      __syncthreads();
      found += collect_range(shared, begin, found, found_keys, found_masks, walks.segment);
      if (found > walks.segment) break;
      if (begin + kRange >= limit || (walks.long_walks && found > kLongSegment)) {
        blocks += emit_segment(shared, keys + blocks * kBlockKeys, masks + int64_t(blocks) * kMaskWords,
                               found_keys, found_masks, found, set_quarters(packing));
        found = 0;
      }
    }
    if (threadIdx.x == 0) {
      walks.blocks[place] = blocks;
      if (found > 0) append(walks.overflow, tile);
    }
  }
}

}  // namespace

cudaError_t launch_build_walks(const SparseAttentionParams& params, const Walks& walks,
                               const Packing& packing, int first, int tiles, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(build_walks, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  build_walks<<<min(tiles, walks.builders), kThreads, sizeof(Shared), stream>>>(params, walks, packing, first,
                                                                                tiles);
  return cudaGetLastError();
}

}  // namespace gsa::sparse_attention
