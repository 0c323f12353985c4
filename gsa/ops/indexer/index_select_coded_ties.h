// What rows of codes seldom need: keys that share a code and have to be scored again, rows with NaN or
// without codes that tell.
#pragma once

#include "gsa/ops/indexer/index_select_coded_row.h"

namespace gsa::fused_select {

template <int kThreads>
__device__ __noinline__ int2 CodedRow<kThreads>::count_nan(CodedRow row) {
  uint32_t all = 0, choices = 0;
  row.for_each_code([&](uint32_t code, int position) {
    all += code == 0;
    choices += code == 0 && row.candidate(position);
  });
  __syncthreads();
  return row.add_up(all, choices);
}

template <int kThreads>
__device__ __noinline__ typename CodedRow<kThreads>::Exact CodedRow<kThreads>::count_exactly(CodedRow row) {
  const float near = Rescore(row.p, row.sequence, row.token)(0),
              shift = fabsf(near) < 1e30f ? coarse(near) : 0.0f;
  float sum = 0, squares = 0;
  uint32_t numbers = 0, choices = 0;
  row.for_each_score(kAll, [&](float score, int position) {
    if (isnan(score)) return;
    ++numbers;
    sum += score - shift;
    squares = fmaf(score - shift, score - shift, squares);
    choices += row.candidate(position) && score > -kInfinity;
  });
  sum = cuda::warp_sum(sum);
  squares = cuda::warp_sum(squares);
  __syncthreads();
  if (lane() == 0) row.scratch.exact[warp()] = float2{sum, squares};
  const int2 counts = row.add_up(numbers, choices);
  sum = squares = 0;
  for (int i = 0; i < kWarps; ++i) {
    sum += row.scratch.exact[i].x;
    squares += row.scratch.exact[i].y;
  }
  const float n = static_cast<float>(max(counts.x, 1)), mean = sum / n;
  return {fmaxf(__fsub_rn(squares / n, __fmul_rn(mean, mean)), 0.0f), counts.y};
}

template <int kThreads>
__device__ __noinline__ void CodedRow<kThreads>::choose_tied(CodedRow row, int count, int rank) {
  CodedRowScratch<kThreads>& scratch = row.scratch;
  const Rescore rescore(row.p, row.sequence, row.token);
  __syncthreads();
#pragma unroll 1
  for (int begin = 8 * warp(); begin < count; begin += 8 * kWarps) {
    const float score = rescore(scratch.tied[min(begin + lane() % 8, count - 1)]);
    if (begin + lane() < min(begin + 8, count))
      scratch.scores[begin + lane()] = isnan(score) ? -kInfinity : score;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = thread(); i < count; i += kThreads) {
    const int position = scratch.tied[i];
    const float score = scratch.scores[i];
    int better = 0;
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
      const float other = scratch.scores[j];
      better += other > score || (other == score && scratch.tied[j] < position);
    }
    if (better < rank) row.take(position);
  }
}

template <int kThreads>
__device__ __noinline__ void CodedRow<kThreads>::choose_in_bin(CodedRow row, uint32_t from, int count,
                                                               int rank) {
  CodedRowScratch<kThreads>& scratch = row.scratch;
  row.template for_each_part<true>(row.parts(), [&](uint4 v, int i) {
    if (((bits_at_least(v, both(from)) ^ bits_at_least(v, both(from + kBinCodes))) & 0xffu) == 0) return;
    row.for_each_near(v, 8 * i, from, kBinCodes,
                      [&](uint32_t digit, int) { atomicAdd(&scratch.low[digit], 1u); });
  });
  __syncthreads();
  const Digit digit = row.find_low(count, rank);
  const uint32_t code = from + digit.digit;
  if (digit.rank == digit.count) return row.mark(code);
  if (digit.count > kNear) return choose_among(row, code, digit.rank);
  row.mark_near(code, 1);
  for (int i = thread(); i < digit.count; i += kThreads) scratch.tied[i] = static_cast<int>(scratch.near[i]);
  choose_tied(row, digit.count, digit.rank);
}

template <int kThreads>
__device__ __noinline__ void CodedRow<kThreads>::take_first(CodedRow row, int rank) {
  row.mark(kLowestCode + 1);
  const uint32_t key = find_kth(row.scratch.radix, rank, [&](auto visit) {
    row.for_each_code([&](uint32_t code, int position) {
      if (code == kLowestCode && row.candidate(position)) visit(~static_cast<uint32_t>(position));
    });
  });
  const int last = static_cast<int>(~key);
  row.for_each_code([&](uint32_t code, int position) {
    if (code == kLowestCode && position <= last) row.take(position);
  });
}

template <int kThreads>
__device__ __noinline__ void CodedRow<kThreads>::choose_among(CodedRow row, uint32_t code, int rank) {
  row.mark(code == kAll ? 0x7c00u : code + 1);
  if (rank <= 0) return;
  auto& scratch = row.scratch.radix;
  const auto for_each = [&](auto visit) {
    row.for_each_score(code, [&](float score, int position) {
      if (row.candidate(position) && (score > -kInfinity || code != kAll)) visit(score, position);
    });
  };
  const auto key_of = [](float score) { return isnan(score) ? kLowest : ordered_key(score); };
  const uint32_t last =
      find_kth(scratch, rank, [&](auto visit) { for_each([&](float s, int) { visit(key_of(s)); }); });
  const int ties = scratch.found_rank, equal = scratch.found_count;
  __syncthreads();
  int last_position = INT32_MAX;
  if (ties < equal) {
    const uint32_t key = find_kth(scratch, ties, [&](auto visit) {
      for_each([&](float s, int position) {
        if (key_of(s) == last) visit(~static_cast<uint32_t>(position));
      });
    });
    last_position = static_cast<int>(~key);
  }
  for_each([&](float s, int position) {
    if (key_of(s) > last || (key_of(s) == last && position <= last_position)) row.take(position);
  });
}

}  // namespace gsa::fused_select
