#pragma once
// Is this the tokenizer that a model was trained with?

#include <cstdint>
#include <string>

#include "gsa/text/tokenizer.h"

namespace gsa {

/// Throws Error when the model names another tokenizer (`expected_hash`, Tokenizer::hash() at training;
/// empty: unknown) or has fewer embeddings (`vocab_size`) than the tokenizer has tokens.
void check_tokenizer(const Tokenizer& tokenizer, const std::string& expected_hash, int64_t vocab_size);

}  // namespace gsa
