#!/usr/bin/env python3
"""gsa tokenizer and gsa data, through the command line, against the tokenizers and safetensors packages."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from safetensors.numpy import load_file
from tokenizers import Tokenizer

GSA = os.environ["GSA_CLI"]
SOURCES = pathlib.Path(json.__file__).resolve().parent  # a folder of real Python files
SEED = int(os.environ.get("GSA_SEED", time.time_ns() % 1000000))


def gsa(*arguments, text=None):
    return subprocess.run([GSA, *map(str, arguments)], capture_output=True, text=True, input=text,
                          env=dict(os.environ, GSA_PYTHON=sys.executable))


class DataTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print("seed", SEED, "(repeat with GSA_SEED)")
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.tokenizer = cls.folder / "tokenizer.json"
        done = gsa("tokenizer", "train", SOURCES, "--extensions", "py", "--vocab-size", 600, "-o", cls.tokenizer)
        assert done.returncode == 0, done.stderr
        cls.package = Tokenizer.from_file(str(cls.tokenizer))
        cls.end = cls.package.token_to_id("<|end_of_text|>")
        # 400 documents, of which 300 differ, in files, a nested folder and JSON lines.
        generator = random.Random(SEED)
        words = (SOURCES / "decoder.py").read_text().split()
        cls.documents = [" ".join(generator.choices(words, k=generator.randrange(1, 60))) + f" é{i}\n" for i in range(300)]
        cls.documents[7] += "<|end_of_text|> forged"
        copies = cls.documents + cls.documents[:100]
        cls.input = cls.folder / "input"
        (cls.input / "deep").mkdir(parents=True)
        for i, text in enumerate(copies[:50]):
            (cls.input / ("deep" if i % 2 else ".") / f"{i}.txt").write_text(text)
        (cls.input / ".hidden.txt").write_text("hidden")
        (cls.input / "empty.txt").write_text("")
        (cls.input / "more.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in copies[50:]) + "\n")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def mistake(self, arguments, expected, text=None):
        done = gsa(*arguments, text=text)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(expected, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    def prepare(self, output, *more):
        done = gsa("data", "prepare", self.input, "-t", self.tokenizer, "-o", output, *more)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr.count("\r"), 0, "no progress bar without a terminal")
        return json.loads((output / "manifest.json").read_text())

    def read_documents(self, folder, manifest, split):
        texts = []
        for shard in manifest["splits"][split]["shards"]:
            tensors = load_file(folder / shard["file"])
            tokens, bounds = tensors["tokens"], tensors["documents"]
            self.assertEqual(str(tokens.dtype), "uint16")
            self.assertEqual((shard["tokens"], shard["documents"]), (len(tokens), len(bounds) - 1))
            self.assertEqual((tokens == self.end).sum(), len(bounds) - 1, "a document that spells the token out must not get it")
            for begin, end in zip(bounds, bounds[1:]):
                self.assertEqual(tokens[end - 1], self.end)
                texts.append(self.package.decode(tokens[begin:end - 1].tolist(), skip_special_tokens=False))
        return texts

    def test_tokenizer_commands_agree_with_the_package(self):
        text = "def f(x):\n    return 'naïve 🙂' + x  # 12345\n"
        ids = self.package.encode(text, add_special_tokens=False).ids
        done = gsa("tokenizer", "encode", "-t", self.tokenizer, text=text)
        self.assertEqual(done.stdout.split(), [str(id) for id in ids])
        self.assertEqual(gsa("tokenizer", "encode", "-t", self.tokenizer, "--special", text).stdout.split(),
                         [str(id) for id in self.package.encode(text).ids])
        self.assertEqual(gsa("tokenizer", "decode", "-t", self.folder, text=done.stdout).stdout, text + "\n")
        self.assertIn(f"{len(ids)} tokens", gsa("tokenizer", "encode", "-t", self.tokenizer, "--count", text).stdout)

    def test_every_pattern_trains(self):
        for pattern in ("gpt2", "llama3", "qwen", "smollm"):
            path = self.folder / f"{pattern}.json"
            done = gsa("tokenizer", "train", SOURCES / "*.py", "--vocab-size", 400, "--pattern", pattern, "--special", "<|x|>", "-o", path)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(Tokenizer.from_file(str(path)).get_vocab_size(), 400)
            self.assertIsNotNone(Tokenizer.from_file(str(path)).token_to_id("<|x|>"))

    def test_shards_hold_every_document_and_copies_stay_together(self):
        output = self.folder / "data"
        manifest = self.prepare(output, "--held-out", 0.3, "--shard-tokens", 2000)
        train = self.read_documents(output, manifest, "train")
        held_out = self.read_documents(output, manifest, "held_out")
        self.assertEqual(sorted(train + held_out), sorted(self.documents + self.documents[:100]))
        self.assertFalse(set(train) & set(held_out))
        self.assertTrue(0.15 < len(set(held_out)) / 300 < 0.45, len(set(held_out)))
        self.assertGreater(len(manifest["splits"]["train"]["shards"]), 1)
        self.assertEqual((output / "tokenizer.json").read_bytes(), self.tokenizer.read_bytes())
        digest = subprocess.run(["sha256sum", self.tokenizer], capture_output=True, text=True).stdout.split()[0]
        self.assertEqual(manifest["tokenizer"]["hash"], "sha256:" + digest)
        self.assertEqual(sum(source["documents"] for source in manifest["sources"]), 400)

    def test_the_result_does_not_depend_on_threads(self):
        first = self.prepare(self.folder / "one", "--threads", 1)
        second = self.prepare(self.folder / "five", "--threads", 5)
        self.assertEqual(first, second)
        for shard in first["splits"]["train"]["shards"]:
            self.assertEqual((self.folder / "one" / shard["file"]).read_bytes(), (self.folder / "five" / shard["file"]).read_bytes())

    def test_text_that_is_not_utf8(self):
        bad = self.folder / "bad"
        bad.mkdir()
        (bad / "a.txt").write_text("good")
        (bad / "b.txt").write_bytes(b"ab\xff")
        (bad / "c.jsonl").write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n{"txt": "x"}\n[1]\n{"text": \n')
        output = self.folder / "bad_data"
        arguments = ["data", "prepare", bad, "-t", self.tokenizer, "-o", output]
        self.mistake(arguments, f"{bad}/b.txt: not valid UTF-8 at byte 2")
        self.assertFalse(output.exists())
        self.assertFalse(list(self.folder.glob("bad_data.tmp*")))
        done = gsa(*arguments, "--on-error", "skip", "--held-out", 0)
        self.assertEqual(done.returncode, 0, done.stderr)
        skipped = json.loads((output / "manifest.json").read_text())["skipped"]
        self.assertEqual([pathlib.Path(entry["where"]).name for entry in skipped], ["b.txt", "c.jsonl:2", "c.jsonl:3", "c.jsonl:4", "c.jsonl:5"])
        self.assertEqual(done.stderr.count("skipped"), 5)
        self.assertIn("no text in the field 'text'", skipped[2]["reason"])
        self.mistake(["tokenizer", "train", bad, "-o", self.folder / "never.json"], "b.txt: not valid UTF-8")
        self.assertFalse((self.folder / "never.json").exists())

    def test_an_existing_folder_is_kept(self):
        output = self.folder / "kept"
        self.prepare(output)
        arguments = ["data", "prepare", self.input, "-t", self.tokenizer, "-o", output]
        self.mistake(arguments, "already exists")
        self.prepare(output, "--overwrite", "--separator", "none")
        self.assertIsNone(json.loads((output / "manifest.json").read_text())["separator"])
        self.mistake(["data", "prepare", self.input, "-t", self.tokenizer, "-o", self.input, "--overwrite"], "is not a data folder")

    def test_a_killed_run_leaves_no_folder(self):
        output = self.folder / "killed"
        big = self.folder / "big.jsonl"
        big.write_text("".join(json.dumps({"text": text * 20}) + "\n" for text in self.documents * 10))
        run = subprocess.Popen([GSA, "data", "prepare", str(big), "-t", str(self.tokenizer), "-o", str(output)], stdout=subprocess.DEVNULL)
        while run.poll() is None and not list(self.folder.glob("killed.tmp*")):
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.wait()
        self.assertEqual(run.returncode, -signal.SIGKILL, "the run was over before it could be killed")
        self.assertFalse(output.exists())

    def test_mistakes(self):
        output = self.folder / "nothing"
        prepare = ["data", "prepare", "-t", self.tokenizer, "-o", output]
        self.mistake([*prepare, self.folder / "absent"], "absent: no such file or folder")
        self.mistake([*prepare, self.folder / "*.absent"], "no file matches it")
        self.mistake([*prepare, self.input, "--extensions", "cpp,h"], "no file with one of the extensions")
        self.mistake([*prepare, self.input / "empty.txt"], "no document with any text")
        self.mistake([*prepare, self.input, "--held-out", 1], "--held-out: expected a share")
        self.mistake([*prepare, self.input, "--separator", "<|nope|>"], "has no token '<|nope|>'")
        self.mistake(["data", "prepare", self.input, "-t", self.folder / "none.json", "-o", output], "none.json: no tokenizer.json there")
        raw = subprocess.run([GSA, "tokenizer", "encode", "-t", self.tokenizer], input=b"ab\xff", capture_output=True)
        self.assertEqual((raw.returncode, raw.stderr), (2, b"gsa: text: not valid UTF-8 at byte 2\n"))
        self.mistake(["tokenizer", "decode", "-t", self.tokenizer, "99999"], "token id 99999")
        self.mistake(["tokenizer", "decode", "-t", self.tokenizer], "expected token ids, got 'x'", text="1 x")
        done = gsa("tokenizer", "train", SOURCES, "--extensions", "py", "--vocab-size", 10, "-o", self.folder / "small.json")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--vocab-size: expected at least 258", done.stderr)


if __name__ == "__main__":
    unittest.main()
