// What rows of codes seldom need: keys that share a code and have to be scored again, rows with NaN or
// without codes that tell.
#pragma once

#include "gsa/ops/indexer/index_select_coded_row.h"

namespace gsa::fused_select {

template <int kThreads>
__device__ __noinline__ typename CodedRow<kThreads>::Exact CodedRow<kThreads>::count_exactly(CodedRow row) {
  const Rescore rescore(row.p, row.sequence, row.token);
  const float near = rescore(0), shift = fabsf(near) < 1e30f ? coarse(near) : 0.0f;
  float sum = 0, squares = 0;
  uint32_t numbers = 0, choices = 0;
  const auto enter = [&](float score, int position) {
    if (isnan(score)) return;
    ++numbers;
    sum += score - shift;
    squares = fmaf(score - shift, score - shift, squares);
    choices += row.candidate(position) && score > -kInfinity;
  };
  row.for_each_score(rescore, kAll, enter, [](int) {});
  sum = cuda::warp_sum(sum);
  squares = cuda::warp_sum(squares);
  __syncthreads();
  if (lane() == 0) row.scratch.exact[warp()] = float2{sum, squares};
  const int2 counts = block_sums(numbers, choices, row.scratch.sums);
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
  row.for_each_near(from, kBinCodes, [&](uint32_t digit, int) { atomicAdd(&scratch.low[digit], 1u); });
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
__device__ __noinline__ void CodedRow<kThreads>::take_first(CodedRow row, uint32_t code, int rank) {
  const int last = find_kth_position(row.scratch.radix, rank, row.length, [&](auto visit) {
    row.for_each_near(code, 1, [&](uint32_t, int position) { visit(position); });
  });
  row.for_each_near(code, 1, [&](uint32_t, int position) {
    if (position <= last) row.take(position);
  });
}

// Sums that share a code differ in their lowest 8 bits, or by rounding a little more. So what is left of a
// sum takes the code's place, and the row is one of codes again: of one bin's range.
template <int kThreads>
__device__ __noinline__ void CodedRow<kThreads>::choose_among(CodedRow row, uint32_t code, int rank) {
  CodedRowScratch<kThreads>& scratch = row.scratch;
  row.mark(code + 1);
  const Rescore rescore(row.p, row.sequence, row.token, row.scale);
  const int middle = static_cast<int>(__float_as_uint(2.0f) + (code << 8)) - kCodeBins / 2;
  const auto leave = [&](float sum, int position) {
    const int left = min(max(static_cast<int>(__float_as_uint(sum)) - middle, 1), kCodeBins - 1);
    row.codes[position] = static_cast<uint16_t>(isnan(sum) ? 1 : left);
  };
  row.for_each_score(rescore, code, leave, [&](int position) { row.codes[position] = 0; });
  __syncthreads();
  for (int i = thread(); i < kCodeBins; i += kThreads) scratch.bins[i] = 0;
  __syncthreads();
  row.for_each_near(1, kCodeBins - 1, [&](uint32_t digit, int) { atomicAdd(&scratch.bins[digit + 1], 1u); });
  __syncthreads();
  const Digit last = row.find_bin(rank);
  const uint32_t from = last.digit + (last.rank < last.count ? 1 : 0);
  if (from < kCodeBins)
    row.for_each_near(from, kCodeBins - static_cast<int>(from),
                      [&](uint32_t, int position) { row.take(position); });
  if (last.rank < last.count) take_first(row, last.digit, last.rank);
}

template <int kThreads>
__device__ __noinline__ void CodedRow<kThreads>::choose_by_scores(CodedRow row, int rank) {
  row.mark(0x7c00u);  // none
  if (rank <= 0) return;
  auto& scratch = row.scratch.radix;
  const Rescore rescore(row.p, row.sequence, row.token);
  const auto for_each = [&](auto visit) {
    const auto enter = [&](float score, int position) {
      if (row.candidate(position) && score > -kInfinity) visit(score, position);
    };
    row.for_each_score(rescore, kAll, enter, [](int) {});
  };
  const uint32_t last =
      find_kth(scratch, rank, [&](auto visit) { for_each([&](float s, int) { visit(ordered_key(s)); }); });
  const int ties = scratch.found_rank, equal = scratch.found_count;
  __syncthreads();
  ScoreCut cut{ordered_value(last), INT32_MAX};
  if (ties < equal) {
    cut.position = find_kth_position(scratch, ties, row.length, [&](auto visit) {
      for_each([&](float s, int position) {
        if (s == cut.score) visit(position);
      });
    });
  }
  for_each([&](float s, int position) {
    if (cut.takes(s, position)) row.take(position);
  });
}

}  // namespace gsa::fused_select
