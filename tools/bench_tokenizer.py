#!/usr/bin/env python3
"""Encoding speed of gsa beside the `tokenizers` package, both on one core, on the same text: MB/s for each pattern.

usage: bench_tokenizer.py [TEXT FILE]...   (default: the Python standard library)
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer  # noqa: E402

import train_tokenizer  # noqa: E402

GSA = os.environ.get("GSA_CLI", str(pathlib.Path(__file__).resolve().parent.parent / "build/release/bin/gsa"))
PIECE = 20000  # characters the package gets at a time: it is slower on one long text


def package_speed(tokenizer, text):
    pieces = [text[at:at + PIECE] for at in range(0, len(text), PIECE)]
    start = time.perf_counter()
    for piece in pieces:
        tokenizer.encode(piece, add_special_tokens=False)
    return len(text.encode()) / 1e6 / (time.perf_counter() - start)


def gsa_speed(path, text):
    done = subprocess.run([GSA, "tokenizer", "encode", "-t", path, "--count"], input=text.encode(), capture_output=True, check=True)
    return float(re.search(rb"([\d.]+) MB/s", done.stdout)[1])


def main():
    files = [pathlib.Path(name) for name in sys.argv[1:]] or sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    print(f"{len(text.encode()) / 1e6:.1f} MB of text, best of 3, MB/s\n{'pattern':<10}{'tokenizers':>12}{'gsa':>8}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for pattern in train_tokenizer.PATTERNS:
            path = os.path.join(folder, pattern + ".json")
            train_tokenizer.train(pattern, [text[at:at + PIECE] for at in range(0, len(text), PIECE)], 16000).save(path)
            tokenizer = Tokenizer.from_file(path)
            theirs = max(package_speed(tokenizer, text) for _ in range(3))
            ours = max(gsa_speed(path, text) for _ in range(3))
            print(f"{pattern:<10}{theirs:>12.1f}{ours:>8.1f}{ours / theirs:>8.1f}")


if __name__ == "__main__":
    main()
