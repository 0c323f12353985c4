#!/usr/bin/env python3
"""What the `tokenizers` package says: tokenizer.json files and, for a fuzzed corpus, ids and decoded texts.

usage: tokenizer_golden.py FOLDER SEED. Writes FOLDER/<name>.json and FOLDER/<name>.cases.json for each tokenizer:
[[text, ids, ids with special tokens, ids to decode, decoded, decoded without special tokens, ids as ordinary text], ...].
"""
import json
import pathlib
import random
import sys
import unicodedata

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import train_tokenizer  # noqa: E402

SPACES = [chr(c) for c in (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x2003, 0x200A, 0x200B, 0x2028, 0x2029,
                           0x202F, 0x205F, 0x3000, 0xFEFF)]
# Blocks whose characters differ in kind: letters, marks, numbers, punctuation, symbols, of one to four bytes.
BLOCKS = [(0x21, 0x7F), (0xA1, 0x180), (0x180, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0xE00, 0x1100),
          (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2150), (0x2150, 0x2190), (0x2190, 0x2600), (0x2E80, 0x3100),
          (0x3100, 0x3400), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xF900, 0xFB00), (0xFB00, 0xFF00), (0xFF00, 0xFFF0),
          (0x10300, 0x10400), (0x11000, 0x11100), (0x1D400, 0x1D800), (0x1F300, 0x1F700), (0x20000, 0x20100), (0x2F800, 0x2F900)]
WORDS = ["don't", "DON'T", "we'll", "I'VE", "it'ſ", "they'Re", "x'd", "rock 'n' roll", "naïve", "e\u0301te\u0301", "A\u030A", "Straße",
         "1234567", "3.14159e-10", "٣٤٥", "Ⅷ½²", "０１２", "def f(self, x):", "return [i for i in range(10)]", "    if (a != b) {\n", "\t\t}\r\n",
         "#include <vector>", "std::vector<int>", "--", "==", "...", "!?", "日本語の文章", "한국어", "ﬁﬀ", "🙂👍🏽👨‍👩‍👧", "e\u0327\u0301", "क्षि",
         "<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|endof", "[MASK]", "word", " ", "  ", "\n\n", "ſ", "İ", "\u0000", "\u007f"]


def normalizes_alike(text):
    """The package's normalizers know Unicode 9, ours Unicode 15: of the characters that normalisation touches only old ones compare."""
    touched = unicodedata.combining(text) or unicodedata.normalize("NFKD", text) != text
    return not touched or unicodedata.ucd_3_2_0.category(text) != "Cn"


def character(random_):
    while True:
        low, high = random_.choice(BLOCKS)
        text = chr(random_.randrange(low, high))
        if unicodedata.category(text) not in ("Cn", "Cs") and normalizes_alike(text):
            return text


def fuzzed(random_, source):
    """One text out of a few kinds of pieces."""
    parts = []
    for _ in range(random_.randrange(1, 24)):
        kind = random_.randrange(6)
        if kind == 0:
            parts.append("".join(character(random_) for _ in range(random_.randrange(1, 8))))
        elif kind == 1:
            parts.append("".join(random_.choice(SPACES) for _ in range(random_.randrange(1, 6))))
        elif kind == 2:
            parts.append(random_.choice(WORDS))
        elif kind == 3:
            parts.append("".join(random_.choice("abcdeést 'ETAO19.,\n") for _ in range(random_.randrange(1, 20))))
        elif kind == 4:
            begin = random_.randrange(len(source))
            parts.append(source[begin:begin + random_.randrange(1, 80)])
        else:
            parts.append(random_.choice(SPACES) * random_.randrange(1, 9))
    return "".join(parts)


def by_hand(trained, pre_tokenizer, normalizer=None):
    """The trained model behind another way of cutting."""
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer or normalizers.Sequence([])
    return tokenizer


def variants(trained):
    """Options of tokenizer.json that the four families leave at their defaults."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pattern = r"\s+|[^\s\p{L}]+?\p{L}"
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            split = pre_tokenizers.Split(Regex(pattern), behavior, invert)
            yield f"split_{behavior}_{invert}", by_hand(trained, pre_tokenizers.Sequence([split, byte_level]))
    literal = pre_tokenizers.Split(".", "merged_with_previous")
    yield "literal", by_hand(trained, pre_tokenizers.Sequence([literal, byte_level]), normalizers.NFKC())
    possessive = pre_tokenizers.Split(Regex(r"\p{N}{1,2}+|[^\r\n\p{L}\p{N}]?+\p{L}++|\s++$|(?:\S{2}){1,3}+"), "isolated")
    yield "possessive", by_hand(trained, pre_tokenizers.Sequence([possessive, byte_level]), normalizers.NFD())
    empty = pre_tokenizers.Split(Regex(r"\p{N}*"), "isolated")
    yield "empty_matches", by_hand(trained, pre_tokenizers.Sequence([empty, byte_level]), normalizers.NFKD())
    digits = pre_tokenizers.Digits(individual_digits=False)
    yield "prefix_space", by_hand(trained, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=True)]))
    added = Tokenizer.from_str(trained.to_str())
    added.normalizer = normalizers.NFC()
    added.add_tokens([AddedToken("word", single_word=True), AddedToken("\u00C5", normalized=True), AddedToken("return", lstrip=True),
                      AddedToken("if", rstrip=True, lstrip=True, normalized=False), AddedToken("  ", normalized=False)])
    added.add_special_tokens([AddedToken("[MASK]", lstrip=True, rstrip=True), AddedToken("<|endof", single_word=True)])
    yield "added", added


def small_alphabet(documents):
    """A vocabulary that lacks most bytes: with an unknown token (alone and fused) and without."""
    for name, options in (("drop", {}), ("unknown", {"unk_token": "?"}), ("fused", {"unk_token": "?", "fuse_unk": True})):
        vocabulary = {token: id for id, token in enumerate(["a", "b", "e", "t", "?", "Ġ", "at", "Ġat", "tt", "??"])}
        merges = [("a", "t"), ("Ġ", "at"), ("t", "t"), ("?", "?")]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
        tokenizer.pre_tokenizer = train_tokenizer.pre_tokenizer("gpt2")
        tokenizer.decoder = decoders.ByteLevel()
        yield f"small_{name}", tokenizer


def ordinary(tokenizer, text):
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    return ids


def write_cases(folder, name, tokenizer, texts, random_):
    tokenizer.save(str(folder / f"{name}.json"))
    cases = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        # Half of the decoded sequences are arbitrary ids: their bytes are seldom whole characters.
        shown = ids if random_.random() < 0.5 else [random_.randrange(tokenizer.get_vocab_size()) for _ in range(random_.randrange(12))]
        cases.append([text, ids, tokenizer.encode(text).ids, shown, tokenizer.decode(shown, skip_special_tokens=False),
                      tokenizer.decode(shown, skip_special_tokens=True), ordinary(tokenizer, text)])
    (folder / f"{name}.cases.json").write_text(json.dumps(cases))


def main():
    folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    random_ = random.Random(seed)
    source = pathlib.Path(random.__file__).read_text() + pathlib.Path(json.__file__).read_text()
    training = [fuzzed(random_, source) for _ in range(400)] + [source[at:at + 2000] for at in range(0, len(source), 2000)]
    texts = ["", " ", "a", "\n", "<|endoftext|>", *WORDS, "x" * 3000, " " * 3000 + "a", "ab" * 1500, source]
    texts += [fuzzed(random_, source) for _ in range(300)]
    trained = {pattern: train_tokenizer.train(pattern, training, 1200) for pattern in train_tokenizer.PATTERNS}
    for pattern, tokenizer in trained.items():
        write_cases(folder, pattern, tokenizer, texts, random_)
    for name, tokenizer in [*variants(trained["gpt2"]), *small_alphabet(training)]:
        write_cases(folder, name, tokenizer, texts[:40] + texts[-150:], random_)


if __name__ == "__main__":
    main()
