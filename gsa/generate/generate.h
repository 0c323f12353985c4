#pragma once
// Text from a prompt, token by token through the cache.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "gsa/generate/sampler.h"
#include "gsa/models/decoder.h"
#include "gsa/text/tokenizer.h"

namespace gsa {

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  SamplingConfig sampling;
  std::vector<std::string> stop;  // text that ends the generation; not part of the result
  bool ignore_end = false;        // go on after the end-of-text token
  bool add_special = true;        // what the tokenizer puts around a text (Llama 3: the BOS token)
  AttentionMode mode = AttentionMode::sparse;
  int64_t prefill_chunk = 2048;  // prompt tokens per forward
};

struct Generation {
  std::string text;
  std::vector<int32_t> tokens;  // generated ones, an end-of-text token among them
  std::string finish;           // end | stop | length
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0.0;  // prompt to first logits
  double decode_seconds = 0.0;   // all further forwards
  int64_t decoded_tokens = 0;    // forwards of one token each

  double prefill_rate() const {
    return prefill_seconds > 0 ? static_cast<double>(prompt_tokens) / prefill_seconds : 0.0;
  }
  double decode_rate() const {
    return decode_seconds > 0 ? static_cast<double>(decoded_tokens) / decode_seconds : 0.0;
  }
};

/// Continues `prompt` (UTF-8). `stream` receives the text as it becomes certain: whole characters, nothing of
/// a stop string. Throws Error for a tokenizer that is not the model's, an empty prompt, or a value out of
/// range.
Generation generate(Decoder& model, const Tokenizer& tokenizer, std::string_view prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& stream = {});

}  // namespace gsa
