// What the CTAs of index_select's decode kernel hold: in shared memory each for itself, in the workspace for
// the other parts of the row.
#pragma once

#include "gsa/cuda/runtime.h"
#include "gsa/ops/indexer/index_select_decode_params.h"

namespace gsa::decode {

constexpr int kWarps = kThreads / 32;
constexpr int kRingBytes = 4096;  // of index keys that a warp has in flight, or twice that
constexpr int kMaxRingSteps = 4;  // that those bytes hold

// What one part tells the others of its row, per query.
struct alignas(16) Slot {
  double a, b, c;  // sum, sum of squares, number of scores; or maximum, sum of exp, sum of x exp
  double unused;
};

// And when it has found the boundary bin. Words are zero until they are written, so that the others wait for
// the words themselves, not for a counter behind them.
struct alignas(32) Record {
  static constexpr int kCandidates = 3;
  unsigned long long header;  // made_header
  unsigned long long candidates[kCandidates];
};

// `selected` keys above the boundary bin, kept ones included, and `tied` ones in it.
__device__ __forceinline__ unsigned long long made_header(unsigned selected, unsigned tied) {
  return 1ull << 63 | static_cast<unsigned long long>(tied) << 31 | selected;
}
__device__ __forceinline__ unsigned header_selected(unsigned long long header) {
  return static_cast<unsigned>(header) & 0x7fffffffu;
}
__device__ __forceinline__ unsigned header_tied(unsigned long long header) {
  return static_cast<unsigned>(header >> 31) & 0x7fffffffu;
}

// Pointers into the workspace. The first `zeroed_bytes` of it are zero between launches.
struct Workspace {
  unsigned* barrier;     // [batch, 2] parts that arrived, parts that left
  unsigned* list_count;  // [rows]
  unsigned* missing;     // [rows] keys that the histogram should have counted, but for their score (NaN)
  unsigned* bounds;      // [rows, kRounds, 2] ~smallest and largest candidate
  unsigned* histogram;   // [rows, kBins] of round 0; not kept zero: [kRounds - 1, rows, kBins] of the others
  Slot* slots;           // [ctas, T]
  Record* records;       // [ctas, T]
  unsigned long long* list;  // [rows, kCandidates] that do not fit records
  float* scores;             // [rows, padded keys] where a part does not fit shared memory, else null
  size_t zeroed_bytes;
};

// How a launch is laid out; splits and part_keys only where all rows have the same length, else 0.
struct Layout {
  int splits, part_keys;
  int scoring_warps;     // that have rings
  int ring_bytes;        // of each
  int scores_in_shared;  // room for scores, in numbers
};

enum class Mode { kNone, kAll, kBin, kList, kTied };

// The search for one query's boundary score; the same in every part of the row.
struct Search {
  Mode mode;
  int wanted;                  // keys still to take from the interval or bin
  int count;                   // keys the query gets in all
  unsigned bin;                // that holds the boundary
  unsigned candidates;         // keys in it
  unsigned key_low, key_high;  // of later rounds: the ordered scores that the bins divide
  int shift;                   // and the width of a bin: 1 << shift
  float score;                 // in the end: higher scores are selected, and equal ones up to `position`;
  int position;                // kTied: the first `wanted` equal ones, in the order of their positions
};

// Blocks of eight columns of the kernel that takes so many.
constexpr int kernel_columns(int columns) {
  return columns <= 8 ? 1 : columns <= 32 ? 4 : 8;
}
// What a warp adds up apart, for each quad: one head's columns alternate.
constexpr int moment_sets(int columns) {
  return columns == 1 ? 2 : columns;
}

struct Part {
  int row, rank, splits, length, begin, end;
};

// What a part counts of a query's keys: selected for sure, in the boundary bin, and of these ~smallest and
// largest ordered score.
struct Tally {
  unsigned selected, tied, low, high;
};

// What a part learns of a query from the others.
struct Found {
  unsigned before, tied_before;  // keys selected, or tied, by the parts before this one
  unsigned listed, beyond;       // candidates of the records, and those in the row's list
};

// The rings lie behind it: bulk copies to places off the 128-byte lines are slower by a fifth.
struct alignas(128) Shared {
  Part part;
  uint64_t full[kWarps][kMaxRingSteps];  // barriers of the warps' rings
  Search search[kMaxTokens];
  Tally tally[kMaxTokens];
  Found found[kMaxTokens];
  unsigned counted[kMaxTokens];  // keys in the part's histogram
  unsigned listed[kMaxTokens];   // candidates of this part that the others are told of
  unsigned absent;               // the row's missing keys, as far as known
  float2 bins[kMaxColumns];  // of round 0, per query: lowest score, bins per score; columns without a query
                             // read it too
  double* moments;           // [kWarps, sets of columns, 4, 3], behind the rings
  double peak[kWarps][3];    // of publish_peak
  unsigned warp_total[kWarps], warp_tied[kWarps];
  unsigned long long list[kCandidates];
};

}  // namespace gsa::decode
