"""gsa model, convert and generate as people run them: the happy path from a configuration to text, and one clear line
for every mistake."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

GSA = os.environ["GSA_CLI"]
CONFIG = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              gsa=dict(indexer=dict(index_heads=2, index_dim=16, index_rotary_dim=8, keep_first=1, keep_recent=3),
                       budget=dict(rule="fixed", k_base=16, k_min=8, k_max=32)))


def write_tokenizer(folder, text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))


class ModelCommandsTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = pathlib.Path(scratch.name)
        self.config = self.root / "tiny.json"
        self.config.write_text(json.dumps(CONFIG))

    def run_gsa(self, *arguments, text=None):
        return subprocess.run([GSA, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=120)

    def ok(self, *arguments, text=None):
        done = self.run_gsa(*arguments, text=text)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def mistake(self, *arguments):
        done = self.run_gsa(*arguments)
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        lines = done.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        return lines[0]

    def fresh(self, name, *options):
        folder = self.root / name
        self.ok("model", "init", self.config, folder, *options)
        write_tokenizer(folder, "the quick brown fox jumps over the lazy dog " * 9)
        return folder

    def test_every_variant_generates(self):
        for variant in ("dense", "gated", "sparse", "gsa"):
            folder = self.fresh(variant, "--variant", variant, "--seed", 3)
            info = json.loads(self.ok("model", "info", folder, "--json"))
            self.assertEqual(info["variant"], variant)
            counts = info["parameters"]
            self.assertEqual(counts["total"], sum(count for part, count in counts.items() if part != "total"))
            self.assertEqual(counts["gates"] > 0, variant in ("gated", "gsa"))
            self.assertEqual(counts["indexer"] > 0, variant in ("sparse", "gsa"))
            one = json.loads(self.ok("generate", folder, "--prompt", "the quick", "-n", 24, "--ignore-end", "--json"))
            self.assertEqual(len(one["tokens"]), 24)
            self.assertEqual(one["finish"], "length")
            streamed = self.ok("generate", folder, "--prompt-file", "/dev/stdin", "-n", 24, "--ignore-end", text="the quick")
            self.assertEqual(streamed, "the quick" + one["text"] + "\n")

    def test_float8_index_keys_take_half_the_bytes(self):
        folders = [self.fresh(f"keys_{dtype}", "--set", f"gsa.indexer.key_dtype={dtype}") for dtype in ("compute", "float8_e4m3fn")]
        infos = [json.loads(self.ok("model", "info", folder, "--json")) for folder in folders]
        config = json.loads((folders[0] / "config.json").read_text())
        saved = config["num_hidden_layers"] * config["gsa"]["indexer"]["index_dim"]
        self.assertEqual(infos[0]["cache_bytes_per_token"] - infos[1]["cache_bytes_per_token"], saved)
        self.assertIn("index keys in FP8", self.ok("model", "info", folders[1]))
        self.ok("generate", folders[1], "--prompt", "the quick", "-n", 24, "--ignore-end", "--json")

    def test_sampling_repeats_with_its_seed(self):
        folder = self.fresh("sampled")
        options = ("generate", folder, "-p", "a", "-n", 16, "--temperature", 1.2, "--top-k", 50, "--top-p", 0.95, "--ignore-end", "--json")
        tokens = [json.loads(self.ok(*options, "--seed", seed))["tokens"] for seed in (1, 1, 2)]
        self.assertEqual(tokens[0], tokens[1])
        self.assertNotEqual(tokens[0], tokens[2])

    def test_converting_keeps_the_dense_model(self):
        dense = self.fresh("dense", "--variant", "dense")
        self.ok("convert", dense, self.root / "converted", "--set", "budget.k_base=200", "--set", "budget.k_min=140")
        generated = [json.loads(self.ok("generate", folder, "-p", "the", "-n", 20, "--dense", "--json"))["tokens"]
                     for folder in (dense, self.root / "converted")]
        self.assertEqual(*generated)
        config = json.loads((self.root / "converted" / "config.json").read_text())
        self.assertTrue(config["gsa"]["gates"]["identity"])
        self.assertEqual(config["gsa"]["budget"]["k_base"], 200)

    def test_mistakes(self):
        folder = self.fresh("model")
        self.assertIn("unknown command 'genrate' (did you mean 'generate'?)", self.mistake("genrate", folder))
        self.assertIn("gsa data: unknown command 'prepair' (did you mean 'prepare'?)", self.mistake("data", "prepair"))
        self.assertIn("gsa train: --config is required", self.mistake("train"))
        self.assertIn("--tempreture", self.mistake("generate", folder, "--tempreture", 1))
        self.assertIn("cannot open", self.mistake("model", "info", self.root / "none.json"))
        self.assertIn("did you mean 'hidden_size'?", self.mistake("model", "init", self.config, self.root / "x", "--set", "hiden_size=1"))
        self.assertIn("expected dense | gated | sparse | gsa, got 'gas'",
                      self.mistake("model", "init", self.config, self.root / "x", "--variant", "gas"))
        self.assertIn("expected a dense model", self.mistake("convert", folder, self.root / "x"))
        self.assertIn("temperature: expected zero or more", self.mistake("generate", folder, "-p", "a", "--temperature", -1))
        self.assertIn("expected auto", self.mistake("generate", folder, "-p", "a", "--device", "gpu"))
        self.assertFalse((self.root / "x").exists())

        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tokenizer_hash": "sha256:" + "0" * 64}))
        self.assertIn("wrong tokenizer", self.mistake("generate", folder, "-p", "a"))
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
        self.assertIn("'model.layers.2.input_layernorm.weight' [32] is missing", self.mistake("generate", folder, "-p", "a"))
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
        self.assertIn("unexpected tensor 'model.layers.1.", self.mistake("generate", folder, "-p", "a"))
        (folder / "config.json").write_text(json.dumps(config))
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:-7])
        self.assertIn("model.safetensors", self.mistake("generate", folder, "-p", "a"))
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            (folder / name).unlink()
            self.assertIn(name, self.mistake("generate", folder, "-p", "a"))


if __name__ == "__main__":
    unittest.main()
