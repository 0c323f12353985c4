// What the CTAs of the fused decode kernel hold: in shared memory each for itself, in the workspace for the
// other parts of the row.
#pragma once

#include "gsa/ops/indexer/index_select_decode_state.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_params.h"

namespace gsa::sparse_decode {

using namespace gsa::decode;  // NOLINT: one kernel's halves

constexpr int kDim = 128, kGroups = 4, kGroupHeads = 4, kIndexDim = 64;  // what it is compiled for
constexpr int kHeads = kGroups * kGroupHeads, kOutputs = kHeads * kDim;
constexpr int kTokenBytes = kGroups * kDim * 2;
constexpr int kTile = 16;                          // tokens that a slot's warps attend to at a time
constexpr int kSlots = kWarps / kGroups;           // a warp for each group
constexpr int kRowBytes = kTokenBytes + 16;        // of a token in shared memory: ldmatrix without conflicts
constexpr int kTileBytes = 2 * kTile * kRowBytes;  // keys, then values
constexpr int kQueryStride = kDim * 2 + 16;        // bytes of a head's query in shared memory
constexpr int kOutStride = kDim + 8;               // numbers from one head's outputs to the next
constexpr int kPiece = 16;                         // outputs that a part finishes together, of one head
constexpr int kPieces = kOutputs / kPiece;
constexpr int kMaxList = 2048 + kCandidates;  // tokens that a part may have to attend to
constexpr int kMaxParts = 144;                // of a row
constexpr int kLaterRounds = 6;               // that divide a bin of very many: 11 bits of 64 each

// Places in dynamic shared memory, in bytes. Tiles of keys and values lie where rings and scores were.
struct Places {
  int scores, histogram, bits, list, keys, query, terms, moments, attention_query, end;
  int words;            // of 32 keys a part may have
  int words_in_shared;  // whose scores fit; else all of the part's are in the workspace
};

struct Workspace : decode::Workspace {
  float* partial;             // [ctas, kOutputs]: of a row [piece, part, kPiece]
  float2* peaks;              // [ctas, kPieces]: of a row [piece, part] largest logit, sum of weights
  unsigned* later_histogram;  // [rows, kLaterRounds, kBins]
  unsigned long long* span;   // [rows, 2] ~smallest and largest candidate, where there are very many
};

struct State : decode::Shared {
  uint64_t arrived[kSlots];  // barriers of the tiles
  uint64_t listed, ranked;   // and of the row's list and the threshold
  unsigned long long threshold;
  unsigned long long span[2];
  unsigned missing_here;
  int rounds;  // later ones there were
  int sure_total, equal_total;
  float peak[kWarps][kGroupHeads], sum[kWarps][kGroupHeads];
};

// This part's tokens to attend to: `sure` ones first, then candidates.
struct List {
  int* positions;
  unsigned* keys;  // ordered scores of the candidates
  int sure, entries;
  int each;  // tokens of a tile

  __device__ __forceinline__ int tiles() const { return (entries + each - 1) / each; }
  __device__ __forceinline__ int count(int tile) const { return min(max(entries - tile * each, 0), each); }
};

}  // namespace gsa::sparse_decode
