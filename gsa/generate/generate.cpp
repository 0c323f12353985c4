#include "gsa/generate/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "gsa/base/error.h"
#include "gsa/generate/stop_filter.h"
#include "gsa/text/tokenizer_check.h"

namespace gsa {
namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

std::vector<int64_t> prompt_tokens(const Decoder& model, const Tokenizer& tokenizer, std::string_view prompt,
                                   bool add_special) {
  const std::vector<int32_t> ids = tokenizer.encode(prompt, add_special);
  std::vector<int64_t> tokens(ids.begin(), ids.end());
  if (tokens.empty() && model.config().bos_token_id) tokens.push_back(*model.config().bos_token_id);
  if (tokens.empty()) fail("prompt: expected some text, got none");
  return tokens;
}

/// Logits [V] that follow `tokens`, which go through the cache a chunk at a time.
at::Tensor next_logits(Decoder& model, const std::vector<int64_t>& tokens, const ForwardOptions& options,
                       int64_t chunk) {
  at::Tensor hidden;
  for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(chunk)) {
    const size_t end = std::min(begin + static_cast<size_t>(chunk), tokens.size());
    const at::Tensor piece = at::tensor(at::ArrayRef<int64_t>(tokens.data() + begin, end - begin), at::kLong);
    hidden = model.forward(piece.unsqueeze(0).to(model.device()), options).hidden;
  }
  return model.logits(hidden.select(1, hidden.size(1) - 1)).select(0, 0);
}

bool ends_text(const Decoder& model, const Tokenizer& tokenizer, int32_t token) {
  const auto& others = model.config().other_eos_token_ids;
  return model.config().eos_token_id == token || tokenizer.end_of_text() == token ||
         std::find(others.begin(), others.end(), token) != others.end();
}

/// Decoded text on its way out: whole characters, then the stop strings.
struct TextStream {
  StreamDecoder decoder;
  StopFilter filter;
  const std::function<void(std::string_view)>& sink;
  std::string text;

  void emit(const std::string& piece) {
    text += piece;
    if (sink && !piece.empty()) sink(piece);
  }
  bool push(int32_t token) {
    emit(filter.push(decoder.push(token)));
    return filter.stopped();
  }
  void finish() {
    emit(filter.push(decoder.finish()));
    emit(filter.finish());
  }
};

}  // namespace

Generation generate(Decoder& model, const Tokenizer& tokenizer, std::string_view prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& stream) {
  check_tokenizer(tokenizer, model.config().tokenizer_hash, model.config().vocab_size);
  if (options.max_new_tokens < 1)
    fail("max_new_tokens: expected a positive number, got ", options.max_new_tokens);
  if (options.prefill_chunk < 1)
    fail("prefill_chunk: expected a positive number, got ", options.prefill_chunk);
  const at::NoGradGuard no_gradient;
  Sampler sampler(options.sampling);
  const std::vector<int64_t> tokens = prompt_tokens(model, tokenizer, prompt, options.add_special);
  KvCache cache(model.config().num_hidden_layers);
  cache.reserve(static_cast<int64_t>(tokens.size()) + options.max_new_tokens);
  ForwardOptions forward;
  forward.mode = options.mode;
  forward.cache = &cache;

  Generation result;
  result.prompt_tokens = static_cast<int64_t>(tokens.size());
  result.finish = "length";
  TextStream text{StreamDecoder(tokenizer, /*skip_special=*/true), StopFilter(options.stop), stream, ""};
  Stopwatch watch;
  int32_t token = sampler(next_logits(model, tokens, forward, options.prefill_chunk));
  result.prefill_seconds = watch.seconds();
  watch = Stopwatch();
  while (true) {
    result.tokens.push_back(token);
    if (!options.ignore_end && ends_text(model, tokenizer, token)) {
      result.finish = "end";
      break;
    }
    if (token < tokenizer.vocab_size() && text.push(token)) {  // a padded vocabulary has tokens without text
      result.finish = "stop";
      break;
    }
    if (static_cast<int64_t>(result.tokens.size()) == options.max_new_tokens) break;
    token = sampler(next_logits(model, {token}, forward, 1));
    ++result.decoded_tokens;
  }
  result.decode_seconds = watch.seconds();
  text.finish();
  result.text = text.text;
  return result;
}

}  // namespace gsa
