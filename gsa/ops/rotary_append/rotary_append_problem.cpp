#include "gsa/ops/rotary_append/rotary_append_problem.h"

#include "gsa/ops/rotary/rotary_problem.h"

namespace gsa {

RotaryAppendParams rotary_append_params(const NewTokens& tokens, const CachePlaces& places) {
  using Params = RotaryAppendParams;
  Params params;
  params.jobs[Params::kKey] = rotary_params(tokens.key, tokens.cos, tokens.sin, places.key);
  params.jobs[Params::kValue] = rotary_params(tokens.value, {}, {}, places.value);
  if (tokens.query.defined() && tokens.cos.defined())
    params.jobs[Params::kQuery] = rotary_params(tokens.query, tokens.cos, tokens.sin, tokens.query);
  if (tokens.index_query.defined() && tokens.index_cos.defined()) {
    params.jobs[Params::kIndexQuery] =
        rotary_params(tokens.index_query, tokens.index_cos, tokens.index_sin, tokens.index_query);
  }
  if (tokens.index_key.defined()) {
    params.jobs[Params::kIndexKey] = rotary_params(tokens.index_key.unsqueeze(2), tokens.index_cos,
                                                   tokens.index_sin, places.index_key.unsqueeze(2));
    params.float8_index_key = places.index_key.scalar_type() == at::kFloat8_e4m3fn;
  }
  if (tokens.value_gate.defined()) {
    params.value_gate = tokens.value_gate.const_data_ptr();
    params.value_gate_strides = rotary_strides(tokens.value_gate);
    params.gate_scale = static_cast<float>(tokens.gate_scale);
  }
  return params;
}

}  // namespace gsa
