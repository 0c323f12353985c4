// Device side of index_select's decode kernel, last third: ranks the candidates once all parts have told of
// theirs, and writes the part's selected positions where they belong in the row; see docs/kernels/decode.md.
#pragma once

#include "gsa/ops/indexer/index_select_decode_search.cuh"

namespace gsa::decode {

// Where this part's first selected key goes, and how many of its tied keys are selected.
struct Placement {
  int offset, tied_quota;
};

// Waits for a part's record and reads it: the candidates too, where they are listed.
__device__ __forceinline__ Record read_record(const Record* record, bool listed) {
  static_assert(Record::kCandidates == 3);
  const auto* words = reinterpret_cast<const ulonglong2*>(record);
  for (;;) {
    const ulonglong2 first = cuda::load_relaxed(words), second = cuda::load_relaxed(words + 1);
    const Record seen{first.x, {first.y, second.x, second.y}};
    const unsigned count = listed ? header_tied(seen.header) : 0;
    bool complete = seen.header != 0;
#pragma unroll
    for (unsigned i = 0; i < Record::kCandidates; ++i) complete &= i >= count || seen.candidates[i] != 0;
    if (complete) return seen;
    cuda::poll_again();
  }
}

__device__ __forceinline__ unsigned long long wait_candidate(const unsigned long long* candidate) {
  for (;;) {
    if (const unsigned long long seen = cuda::load_relaxed(candidate)) return seen;
    cuda::poll_again();
  }
}

// Waits for what all parts tell. Ranks the candidates, if they are listed: the `wanted` largest are selected,
// those of this part get their bits. Adds up what the parts before this one selected.
__device__ inline Placement place(const Workspace& ws, Shared& shared, const Search& search, Words words,
                                  int query, int row, int tokens) {
  const Part part = shared.part;
  const bool listed = search.mode == Mode::kList;
  Found& found = shared.found[query];
  unsigned selected = 0, tied = 0;
  for (int r = threadIdx.x; r < part.splits; r += kThreads) {
    const Record record = read_record(record_of(ws, blockIdx.x - part.rank + r, query, tokens), listed);
    const unsigned equal = header_tied(record.header);
    if (r < part.rank) {
      selected += header_selected(record.header);
      tied += equal;
    }
    if (!listed || equal == 0) continue;
    const unsigned inside = min(equal, static_cast<unsigned>(Record::kCandidates));
    const unsigned at = atomicAdd(&found.listed, inside);
#pragma unroll
    for (unsigned i = 0; i < Record::kCandidates; ++i)
      if (i < inside) shared.list[at + i] = record.candidates[i];
    if (equal > inside) atomicAdd(&found.beyond, equal - inside);
  }
  __syncthreads();
  if (found.beyond > 0) {
    if (threadIdx.x < found.beyond)
      shared.list[found.listed + threadIdx.x] =
          wait_candidate(ws.list + static_cast<size_t>(row) * kCandidates + threadIdx.x);
    __syncthreads();
  }
  const unsigned count = listed ? search.candidates : 0;
  if (threadIdx.x < count) {
    const unsigned long long mine = shared.list[threadIdx.x];
    int greater = 0;
#pragma unroll 8
    for (unsigned i = 0; i < count; ++i) greater += shared.list[i] > mine;
    const auto at = static_cast<int>(0xffffffffu - static_cast<unsigned>(mine));
    const bool chosen = greater < search.wanted;
    selected += chosen && at < part.begin;
    if (chosen && at >= part.begin && at < part.end)
      atomicOr(words.selected((at - part.begin) / 32), 1u << (at - part.begin) % 32);
  }
  if (__any_sync(0xffffffffu, selected || tied)) {
    selected = __reduce_add_sync(0xffffffffu, selected);
    tied = __reduce_add_sync(0xffffffffu, tied);
    if ((threadIdx.x & 31) == 0) {
      atomicAdd(&found.before, selected);
      atomicAdd(&found.tied_before, tied);
    }
  }
  __syncthreads();
  Placement placement{static_cast<int>(found.before), 0};
  if (search.mode == Mode::kTied) {
    const int taken = min(static_cast<int>(found.tied_before), search.wanted);
    placement.offset += taken;
    placement.tied_quota = search.wanted - taken;
  }
  return placement;
}

// Sums over the threads before this one, of two counts; of the warp's threads alone, if no other warp counts.
__device__ inline int2 exclusive_sum(Shared& shared, int a, int b, bool alone) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  int x = a, y = b;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other_x = __shfl_up_sync(0xffffffffu, x, offset),
              other_y = __shfl_up_sync(0xffffffffu, y, offset);
    if (lane >= offset) {
      x += other_x;
      y += other_y;
    }
  }
  if (alone) return make_int2(x - a, y - b);
  if (lane == 31) {
    shared.warp_total[warp] = x;
    shared.warp_tied[warp] = y;
  }
  __syncthreads();
  const bool before = lane < warp;
  x += __reduce_add_sync(0xffffffffu, before ? static_cast<int>(shared.warp_total[lane]) : 0);
  y += __reduce_add_sync(0xffffffffu, before ? static_cast<int>(shared.warp_tied[lane]) : 0);
  return make_int2(x - a, y - b);
}

// Writes the positions whose bits are set, in ascending order, and of the tied ones the first tied_quota. A
// thread owns a run of words.
__device__ inline void emit_selected(Shared& shared, Words words, bool ties, Placement placement,
                                     int* indices) {
  const Part part = shared.part;
  const int count = (part.end - part.begin + 31) / 32, each = (count + kThreads - 1) / kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * each, count), last = min(first + each, count);
  const int lane = threadIdx.x & 31;
  const bool alone = count <= 32;  // the first warp has all words
  int selected = 0, tied = 0;
#pragma unroll 1  // two words a thread, seldom more
  for (int word = first; word < last; ++word) {
    selected += __popc(*words.selected(word));
    if (ties) tied += __popc(*words.tied(word));
  }
  int2 sum{};
  if (!alone || threadIdx.x < 32) sum = exclusive_sum(shared, selected, tied, alone);
  int out = placement.offset + sum.x + min(sum.y, placement.tied_quota);
  int quota = max(placement.tied_quota - sum.y, 0);
  const bool idle = (static_cast<int>(threadIdx.x) - lane) * each >= count;  // a warp without words
#pragma unroll 1
  for (int i = 0; i < each && !idle; ++i) {
    const int word = first + i;
    unsigned bits = word < last ? *words.selected(word) : 0;
    if (ties && word < last) {
      for (unsigned equal = *words.tied(word); equal && quota; equal &= equal - 1, --quota)
        bits |= equal & -equal;
    }
    const int base = part.begin + word * 32;
    for (unsigned full = __ballot_sync(0xffffffffu, __popc(bits) > 8); full; full &= full - 1) {
      const int owner = __ffs(full) - 1;  // a warp writes a word of many, as the most recent keys are
      const unsigned many = __shfl_sync(0xffffffffu, bits, owner);
      const int to = __shfl_sync(0xffffffffu, out, owner), at = __shfl_sync(0xffffffffu, base, owner);
      if (many >> lane & 1) indices[to + __popc(many & ((1u << lane) - 1))] = at + lane;
      if (lane != owner) continue;
      out += __popc(bits);
      bits = 0;
    }
    for (; bits; bits &= bits - 1) indices[out++] = base + __ffs(bits) - 1;
  }
  __syncthreads();
}

}  // namespace gsa::decode
