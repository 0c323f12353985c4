// What rotary_append hands to its CUDA kernel. Plain data: no torch, no CUDA headers.
#pragma once

#include "gsa/ops/rotary/rotary_params.h"

namespace gsa {

// All arrays of one type but for e4m3 index keys.
struct RotaryAppendParams {
  enum Job { kQuery, kKey, kIndexQuery, kIndexKey, kValue, kJobs };

  // kQuery [B,T,H,E] and kIndexQuery [B,T,J,I] in place; kKey [B,T,G,E], kIndexKey [B,T,1,I] and kValue
  // [B,T,G,E], which turns nothing, to the cache. Without work: batch = 0.
  RotaryParams jobs[kJobs];
  bool float8_index_key = false;     // its `out` holds e4m3
  const void* value_gate = nullptr;  // [B,T,G,E], or null: values pass
  RotaryStrides value_gate_strides;
  float gate_scale = 1;
};

}  // namespace gsa
