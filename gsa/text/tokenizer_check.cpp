#include "gsa/text/tokenizer_check.h"

#include "gsa/base/error.h"

namespace gsa {

void check_tokenizer(const Tokenizer& tokenizer, const std::string& expected_hash, int64_t vocab_size) {
  const auto shortened = [](const std::string& hash) {
    return hash.substr(0, 19);
  };  // "sha256:" and 12 digits
  if (!expected_hash.empty() && expected_hash != tokenizer.hash()) {
    fail(tokenizer.path().string(), ": wrong tokenizer: the model was trained with ",
         shortened(expected_hash), ", this one is ", shortened(tokenizer.hash()));
  }
  if (tokenizer.vocab_size() > vocab_size) {
    fail(tokenizer.path().string(), ": wrong tokenizer: it has ", tokenizer.vocab_size(),
         " tokens, the model only ", vocab_size);
  }
}

}  // namespace gsa
