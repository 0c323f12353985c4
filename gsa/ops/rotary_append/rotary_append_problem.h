#pragma once
// The problem of rotary_append's kernel as tensors give it.

#include "gsa/ops/rotary_append/rotary_append.h"
#include "gsa/ops/rotary_append/rotary_append_params.h"

namespace gsa {

/// Tokens and their places, of dtypes that the kernel takes; their last dimensions and the tables are
/// contiguous.
RotaryAppendParams rotary_append_params(const NewTokens& tokens, const CachePlaces& places);

}  // namespace gsa
