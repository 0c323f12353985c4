#!/usr/bin/env python3
"""Trains a byte-level BPE tokenizer with the `tokenizers` package. `gsa tokenizer train` runs it.

Standard input: one JSON string a line, each a document. Result: a tokenizer.json that gsa and transformers read alike.
"""
import argparse
import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
PATTERNS = ("gpt2", "llama3", "qwen", "smollm")


def special_tokens(pattern):
    """The first begins a text where the pattern has such a token; the last ends a document."""
    return ["<|begin_of_text|>", "<|end_of_text|>"] if pattern == "llama3" else ["<|endoftext|>"]


def pre_tokenizer(pattern):
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(LLAMA3 if pattern == "llama3" else QWEN), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def untrained(pattern):
    """An empty tokenizer that cuts text the way the named family does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if pattern == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def train(pattern, documents, vocab_size, min_frequency=2, extra_special=()):
    tokenizer = untrained(pattern)
    special = special_tokens(pattern) + [token for token in extra_special if token not in special_tokens(pattern)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    if pattern == "llama3":
        begin = special[0]
        template = processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin} $B",
                                                 special_tokens=[(begin, tokenizer.token_to_id(begin))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def documents(stream):
    for line in stream:
        if line == "stop\n":  # whoever reads the text hit a problem and says so itself
            os._exit(1)
        yield json.loads(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the tokenizer.json to write")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--pattern", choices=PATTERNS, default="llama3", help="whose way of cutting text into words")
    parser.add_argument("--min-frequency", type=int, default=2, help="a pair must occur so often to become a token")
    parser.add_argument("--special", action="append", default=[], help="a further special token (may be repeated)")
    arguments = parser.parse_args()
    smallest = 256 + len(special_tokens(arguments.pattern)) + len(arguments.special)
    if arguments.vocab_size < smallest:
        sys.exit(f"--vocab-size: expected at least {smallest} (the bytes and the special tokens), got {arguments.vocab_size}")
    tokenizer = train(arguments.pattern, documents(sys.stdin), arguments.vocab_size, arguments.min_frequency, arguments.special)
    temporary = f"{arguments.out}.tmp.{os.getpid()}"
    tokenizer.save(temporary)
    os.replace(temporary, arguments.out)


if __name__ == "__main__":
    main()
