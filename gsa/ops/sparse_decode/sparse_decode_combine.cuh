// How the parts of a row put together what they found: each tells all others its sums, a piece of the outputs
// to each, and finishes its own pieces. Words are zero until they are written, so parts wait for the words
// themselves; the only one who reads a word leaves it zero.
#pragma once

#include "gsa/ops/sparse_decode/sparse_decode_attend.cuh"

namespace gsa::sparse_decode {

constexpr int kItems =
    (kPieces + kMaxParts) * (kPiece / 4) / kThreads + 1;  // of 16 bytes, a thread's at most
constexpr int kItemStride = kPiece + 1;

__device__ __forceinline__ unsigned told(float x) {  // never zero
  return x == 0 ? 0x80000000u : __float_as_uint(x);
}

// The pieces that a part finishes.
struct Pieces {
  int first, count;

  __device__ explicit Pieces(const Share& share) {
    const int each = (kPieces + share.splits - 1) / share.splits;
    first = min(share.rank * each, kPieces);
    count = min(kPieces - first, each);
  }
};

// Merges the slots' results, four outputs a thread, and tells those who finish them.
__device__ inline void tell_partial(const Workspace& ws, const State& shared, const char* tiles,
                                    const Share& share, const List& list) {
  static_assert(kOutputs == kThreads * 4);
  const int thread = threadIdx.x, head = thread * 4 / kDim, group = head / kGroupHeads,
            own = head % kGroupHeads;
  float peak = -INFINITY, sum = 0;
  float4 out{0, 0, 0, 0};
#pragma unroll
  for (int s = 0; s < kSlots; ++s) peak = fmaxf(peak, shared.peak[s * kGroups + group][own]);
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    if (s >= list.tiles()) break;
    const float factor = cuda::softmax_weight(shared.peak[s * kGroups + group][own], peak);
    const float4 found = *reinterpret_cast<const float4*>(
        reinterpret_cast<const float*>(tiles + s * kTileBytes) + head * kOutStride + thread * 4 % kDim);
    sum += shared.sum[s * kGroups + group][own] * factor;
    out.x += found.x * factor;
    out.y += found.y * factor;
    out.z += found.z * factor;
    out.w += found.w * factor;
  }
  const size_t row = blockIdx.x - share.rank;
  const int piece = thread * 4 / kPiece, place = piece * share.splits + share.rank;
  cuda::store_relaxed(
      reinterpret_cast<uint4*>(ws.partial + row * kOutputs + place * kPiece + thread * 4 % kPiece),
      make_uint4(told(out.x), told(out.y), told(out.z), told(out.w)));
  if (thread * 4 % kPiece == 0)
    cuda::store_relaxed(reinterpret_cast<unsigned long long*>(ws.peaks + row * kPieces + place),
                        static_cast<unsigned long long>(told(sum)) << 32 | told(peak));
}

// Finishes this part's pieces. When it has them all, every part has told, so nobody reads what `clean`
// zeroes.
template <typename Clean>
__device__ inline void finish(const Workspace& ws, const Share& share, char* memory, void* out, float* lse,
                              int row, Clean&& clean) {
  const Pieces pieces(share);
  if (pieces.count == 0) return;
  const int thread = threadIdx.x, splits = share.splits;
  const size_t first_cta = blockIdx.x - share.rank;
  const int totals = pieces.count * splits, items = totals * (kPiece / 4);
  uint4* from = reinterpret_cast<uint4*>(ws.partial + first_cta * kOutputs + pieces.first * splits * kPiece);
  auto* peaks_from =
      reinterpret_cast<unsigned long long*>(ws.peaks + first_cta * kPieces + pieces.first * splits);
  float* found = reinterpret_cast<float*>(memory);  // [piece, part, kItemStride]
  float2* peaks =
      reinterpret_cast<float2*>(memory + (items / 4 * kItemStride + 3) / 4 * 16);  // [piece, part]
  // First the few words of the peaks: what all poll for is in the way of what they tell.
  for (int i = thread; i < totals; i += kThreads) {
    unsigned long long peak;
    for (;;) {
      peak = cuda::load_relaxed(peaks_from + i);
      if (static_cast<unsigned>(peak) != 0 && peak >> 32 != 0) break;
      cuda::poll_again();
    }
    peaks_from[i] = 0;
    peaks[i] = make_float2(__uint_as_float(static_cast<unsigned>(peak)),
                           __uint_as_float(static_cast<unsigned>(peak >> 32)));
  }
  __syncthreads();
  uint4 item[kItems];
  const auto load = [&](int i) { item[i] = cuda::load_relaxed(from + i * kThreads + thread); };
#pragma unroll
  for (int i = 0; i < kItems; ++i)
    if (i * kThreads + thread < items) load(i);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int at = i * kThreads + thread;
    if (at >= items) break;
    while (item[i].x == 0 || item[i].y == 0 || item[i].z == 0 || item[i].w == 0) {
      cuda::poll_again();
      load(i);
    }
    from[at] = make_uint4(0, 0, 0, 0);
    float* to = found + at / 4 * kItemStride + at % 4 * 4;
    to[0] = __uint_as_float(item[i].x);
    to[1] = __uint_as_float(item[i].y);
    to[2] = __uint_as_float(item[i].z);
    to[3] = __uint_as_float(item[i].w);
  }
  __syncthreads();
  const int outputs = pieces.count * kPiece;
  int lanes = 1;  // that share an output's parts
  while (lanes < 32 && outputs * lanes * 2 <= kThreads) lanes *= 2;
  for (int base = 0; base < outputs * lanes; base += kThreads) {
    const int output = min((base + thread) / lanes, outputs - 1), part = (base + thread) % lanes,
              piece = output / kPiece;
    float peak = -INFINITY, sum = 0, total = 0;
#pragma unroll 5
    for (int s = part; s < splits; s += lanes) peak = fmaxf(peak, peaks[piece * splits + s].x);
    for (int offset = 1; offset < lanes; offset *= 2)
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, offset));
#pragma unroll 5
    for (int s = part; s < splits; s += lanes) {
      const float2 of_part = peaks[piece * splits + s];
      const float factor = cuda::softmax_weight(of_part.x, peak);
      sum += of_part.y * factor;
      total += found[(piece * splits + s) * kItemStride + output % kPiece] * factor;
    }
    for (int offset = 1; offset < lanes; offset *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      total += __shfl_xor_sync(0xffffffffu, total, offset);
    }
    if (part != 0 || (base + thread) / lanes >= outputs) continue;
    const bool any = sum > 0 || sum != sum;  // NaN must not look like no keys
    const int place = pieces.first * kPiece + output;
    static_cast<__nv_bfloat16*>(out)[static_cast<int64_t>(row) * kOutputs + place] =
        __float2bfloat16_rn(any ? total / sum : 0.0f);
    if (place % kDim == 0)
      lse[static_cast<int64_t>(row) * kHeads + place / kDim] =
          any ? (peak + log2f(sum)) * 0.693147181f : -INFINITY;
  }
  clean(pieces);
}

}  // namespace gsa::sparse_decode
