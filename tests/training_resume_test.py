"""Training that is killed, stopped, out of disk or misled: `gsa train` as people run it.

The main test kills a run with SIGKILL at random moments (seed printed, GSA_SEED repeats it) and resumes it until it ends; its final
checkpoint must have the bytes of a run that was never interrupted."""
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))
from token_folder import write_token_folder  # noqa: E402

GSA = os.environ["GSA_CLI"]
SEED = int(os.environ.get("GSA_SEED", time.time_ns() % 10**6))
STAGES = [
    dict(kind="dense", steps=8, sequence_length=64, batch_size=2, accumulation=2, warmup_steps=2),
    dict(kind="indexer_warmup", steps=5, sequence_length=64, batch_size=2, index_queries=64),
    dict(kind="sparse", steps=9, sequence_length=96, batch_size=2),
]
MODEL = dict(vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             gsa=dict(indexer=dict(index_heads=2, index_dim=16, index_rotary_dim=8, keep_first=1, keep_recent=4),
                      budget=dict(rule="inverse", k_base=16, k_min=8, k_max=32)))


class TrainingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED} (repeat with GSA_SEED={SEED})", flush=True)
        cls.scratch = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.scratch.name)
        text = pathlib.Path(json.__file__).parent.glob("*.py")
        documents = [path.read_text() for path in text] + [pathlib.Path(unittest.__file__).with_name("case.py").read_text()]
        write_token_folder(cls.root / "tokens", documents, 400)
        write_token_folder(cls.root / "other", documents[:1], 300)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def folder(self, name, **changes):
        """A working folder with its run file; runs in it write to ./out."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        run = dict(output="out", model=MODEL, data=dict(sources=[dict(path=str(self.root / "tokens"))]), stages=STAGES, log_every=2,
                   checkpoints=dict(every=3, keep=2))
        run.update(changes)
        (folder / "run.json").write_text(json.dumps(run))
        return folder

    def command(self, *arguments):
        return [GSA, "train", "--config", "run.json", *arguments]

    def train(self, folder, *arguments, **options):
        return subprocess.run(self.command(*arguments), cwd=folder, capture_output=True, text=True, timeout=600, **options)

    def finished(self, name, **changes):
        folder = self.folder(name, **changes)
        done = self.train(folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        return folder

    def assert_same_end(self, a, b):
        for stage in ("1-dense", "2-indexer_warmup", "3-sparse", "final"):
            files = sorted(path.name for path in (a / "out" / stage).iterdir())
            self.assertEqual(files, sorted(path.name for path in (b / "out" / stage).iterdir()))
            self.assertIn("optimizer.safetensors", files)
            for file in files:
                same = (a / "out" / stage / file).read_bytes() == (b / "out" / stage / file).read_bytes()
                self.assertTrue(same, f"{stage}/{file} differs")
        steps = [[json.loads(line)["step"] for line in (f / "out" / "metrics.jsonl").read_text().splitlines()] for f in (a, b)]
        self.assertEqual(steps[0], steps[1])

    def kill_until_done(self, folder, generator, longest):
        kills = 0
        while True:
            process = subprocess.Popen(self.command("--resume"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                _, errors = process.communicate(timeout=generator.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                longest *= 1.05  # a slow machine must finish too
                continue
            self.assertEqual(process.returncode, 0, errors.decode())
            return kills

    def test_killed_at_random_moments_ends_with_the_same_bytes(self):
        begin = time.monotonic()
        whole = self.finished("whole")
        seconds = time.monotonic() - begin
        generator = random.Random(SEED)
        kills = 0
        for attempt in range(3):
            broken = self.folder("broken")
            kills += self.kill_until_done(broken, generator, 0.9 * seconds)
            self.assert_same_end(whole, broken)
        print(f"{kills} kills", flush=True)
        self.assertGreater(kills, 0)

    def test_activation_checkpointing_and_bf16_resume_too(self):
        changes = dict(checkpoint_activations=True, dtype="bfloat16")
        whole = self.finished("whole_bf16", **changes)
        broken = self.folder("broken_bf16", **changes)
        self.kill_until_done(broken, random.Random(SEED + 1), 2.0)
        self.assert_same_end(whole, broken)

    def test_sigterm_saves_and_leaves(self):
        folder = self.folder("stopped", checkpoints=dict(every=10**6))
        process = subprocess.Popen(self.command(), cwd=folder, stderr=subprocess.PIPE, text=True)
        while not (folder / "out" / "metrics.jsonl").exists() or not (folder / "out" / "metrics.jsonl").read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("stopped; --resume goes on", errors)
        self.assertEqual(len(list((folder / "out" / "checkpoints").iterdir())), 1)
        self.assertEqual(self.train(folder, "--resume").returncode, 0)
        self.assert_same_end(self.finished("whole_again", checkpoints=dict(every=10**6)), folder)

    def test_a_full_disk_loses_nothing(self):
        folder = self.folder("full", checkpoints=dict(every=3, keep=2, patience=0))
        self.assertEqual(self.train(folder, "--set", "stages.0.steps=8").returncode, 0)  # how large files get
        whole = {path: path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file()}
        limit = max(whole.values()) - 1000  # the optimizer's state no longer fits

        def tight():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        folder = self.folder("full", checkpoints=dict(every=3, keep=2, patience=0))
        started = self.train(folder, preexec_fn=tight)
        self.assertEqual(started.returncode, 2)
        self.assertIn("cannot save step", started.stderr)
        self.assertIn("training goes on", started.stderr)
        self.assertTrue((folder / "out" / "2-indexer_warmup" / "model.safetensors").exists())
        # What was saved is whole, and with space the run goes on to the same end.
        self.assertFalse([path for path in (folder / "out").rglob("*.tmp*")])
        resumed = self.train(folder, "--resume")
        self.assertEqual(resumed.returncode, 0, resumed.stderr)
        self.assert_same_end(self.finished("whole_full", checkpoints=dict(every=3, keep=2, patience=0)), folder)

    def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(self):
        folder = self.folder("nan", optimizer=dict(clip_norm=0))
        done = self.train(folder, "--set", "stages.0.learning_rate=1e38", "--set", "stages.0.warmup_steps=7",
                          "--set", "checkpoints.every=1")
        self.assertEqual(done.returncode, 2)
        last = done.stderr.strip().splitlines()[-1]
        self.assertRegex(last, r"^gsa: step \d+ \(dense\): the (loss|gradient norm) is -?(nan|inf); (the last good checkpoint is "
                               r"out/checkpoints/step-\d+|there is no checkpoint yet)")

    def test_mistakes_get_one_clear_line(self):
        folder = self.finished("mistakes")
        other = self.root / "other"
        cases = [
            ([], "holds a run already"),
            (["--resume", "--set", "stages.0.learning_rate=0.5"], "another run configuration (stages.0.learning_rate)"),
            (["--resume", "--set", f"data.sources.0.path={other}"], "tokenizer"),
            (["--output", "new", "--set", f"checkpoint={folder}/out/final", "--set", f"data.sources.0.path={other}"], "another tokenizer"),
            (["--output", "new", "--set", "data.sources.0.path=nowhere"], "nowhere"),
            (["--output", "new", "--set", "stages.0.step=3"], "did you mean 'steps'?"),
            (["--output", "new", "--set", "model.vocab_size=300"], "vocabulary of 400"),
            (["--output", "new", "--set", "checkpoint=nowhere"], "nowhere"),
        ]
        for arguments, expected in cases:
            done = self.train(folder, *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(expected, done.stderr)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        manifest = self.root / "tokens" / "manifest.json"
        text = manifest.read_text()
        manifest.write_text(text.replace('"hash": "sha256:', '"hash": "sha256:0', 2).replace('"hash": "sha256:0', '"hash": "sha256:', 1))
        done = self.train(folder, "--resume")
        manifest.write_text(text)
        self.assertEqual(done.returncode, 2)
        self.assertIn("the data folders do not hold what", done.stderr)
        for file in ("trainer.json", "optimizer.safetensors", "model.safetensors", "run.json"):
            saved = (folder / "out" / "final" / file).read_bytes()
            (folder / "out" / "final" / file).unlink()
            done = self.train(folder, "--resume")
            self.assertEqual(done.returncode, 2, file)
            self.assertIn(file, done.stderr)
            (folder / "out" / "final" / file).write_bytes(saved)

    def test_dense_in_disguise_is_a_warning(self):
        folder = self.folder("disguise", stages=[dict(kind="sparse", steps=1, sequence_length=8, batch_size=1)])
        done = self.train(folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("dense in disguise", done.stderr)

    def test_a_finished_stage_is_a_start_for_another_run(self):
        first = self.finished("first")
        second = self.folder("second", checkpoint=str(first / "out" / "1-dense"), model={},
                             stages=[dict(kind="indexer_warmup", steps=2, sequence_length=64, batch_size=1)])
        done = self.train(second)
        self.assertEqual(done.returncode, 0, done.stderr)
        for folder in (first, second):  # whoever reads the checkpoint knows where a text ends
            config = json.loads((folder / "out" / "final" / "config.json").read_text())
            self.assertEqual(config["eos_token_id"], 0)  # the tokenizer's <|endoftext|>

    def test_a_dense_model_gets_gates_and_an_indexer(self):
        dense = dict(MODEL, gsa=dict(gates=dict(value_gate=False, output_gate=False), indexer=None))
        first = self.finished("plain", model=dense, stages=STAGES[:1])
        second = self.folder("converted", checkpoint=str(first / "out" / "final"), model=dict(gsa=MODEL["gsa"]), stages=STAGES[1:])
        done = self.train(second)
        self.assertEqual(done.returncode, 0, done.stderr)
        config = json.loads((second / "out" / "final" / "config.json").read_text())
        self.assertTrue(config["gsa"]["gates"]["identity"])
        self.assertEqual(config["gsa"]["indexer"]["index_dim"], 16)


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
