#!/usr/bin/env python3
"""The demo: trains a tokenizer and a small GSA model on this machine's own Python sources (or on --text), compares what selects the
keys at equal k, completes a piece of code and writes runs/demo/report.html. The sizes are those of configs/models/demo.json and
configs/runs/demo.json; every step is a `gsa` command, printed before it runs."""
import argparse
import html
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import zlib

import demo_report

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORPUS_BYTES = 12_000_000
HELD_OUT = 0.1
PROMPT = '''class Rectangle:
    def __init__(self, width, height, colour=None):
        self.width = width
        self.height = height
        self.colour = colour

    def '''


def say(text):
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def fail(text):
    sys.exit(f"demo: {text}")


def read_json(path):
    """JSON with // comments on lines of their own."""
    return json.loads(re.sub(r"^\s*//.*$", "", pathlib.Path(path).read_text(), flags=re.M))


# ---- the corpus -------------------------------------------------------------------------------------------------------------------


def repetition(data):
    """How much better the text compresses with 4 KB of memory than with 512 bytes: what there is to find further back."""
    def size(window_bits):
        compressor = zlib.compressobj(6, zlib.DEFLATED, -window_bits)
        return len(compressor.compress(data)) + len(compressor.flush())
    return size(9) / size(12)


def python_sources():
    """Long Python files of the standard library and the installed packages: the ones whose text repeats from afar, where a model has
    a use for its context (but not tables and generated code, which only repeat), up to CORPUS_BYTES."""
    stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
    installed = {pathlib.Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib")}
    found, seen = [], set()
    files = [path for path in stdlib.rglob("*.py") if "site-packages" not in path.parts and "dist-packages" not in path.parts]
    files += [path for folder in sorted(installed) for path in folder.rglob("*.py")]
    for path in sorted(files):
        if not 16_384 <= path.stat().st_size <= 400_000:
            continue
        data = path.read_bytes()
        digest = hash(data)
        if digest in seen:
            continue
        seen.add(digest)
        sample = data[:32_768]
        if len(sample) / len(zlib.compress(sample, 1)) > 6:
            continue
        score = repetition(sample)
        if score <= 3:
            found.append((score, path, data))
    found.sort(key=lambda item: (-item[0], str(item[1])))
    documents, total = [], 0
    for _, path, data in found:
        if total >= CORPUS_BYTES:
            break
        try:
            documents.append((str(path), data.decode("utf-8")))
            total += len(data)
        except UnicodeDecodeError:
            continue  # some tests are written in other encodings on purpose
    return documents


def own_text(names):
    """The user's files, in pieces, so that some of them can be held out."""
    documents = []
    for name in names:
        try:
            text = pathlib.Path(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            fail(f"--text expected a file, got '{name}', which does not exist")
        except (IsADirectoryError, PermissionError) as error:
            fail(f"--text expected a readable file, got '{name}' ({error.strerror})")
        except UnicodeDecodeError as error:
            fail(f"--text expected UTF-8 text, but '{name}' is not (byte {error.start})")
        for begin in range(0, len(text), 24_000):
            documents.append((f"{name}@{begin}", text[begin:begin + 24_000]))
    return documents


# ---- steps ------------------------------------------------------------------------------------------------------------------------


class Demo:
    def __init__(self, arguments):
        self.out = pathlib.Path(arguments.output).resolve()
        self.gsa = arguments.gsa
        self.device = arguments.device
        self.text = arguments.text
        self.started = time.time()
        self.run_file = read_json(ROOT / "configs/runs/demo.json")
        self.model = read_json(ROOT / self.run_file["model_config"])
        for stage in self.run_file["stages"]:
            stage["steps"] = max(2, round(stage["steps"] * arguments.scale))
        # Products this small gain nothing from a second thread, and lose much on a busy machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.sequences = max(2, round(96 * min(1, arguments.scale)))
        self.k = self.model["gsa"]["budget"]["k_base"]
        self.length = self.run_file["stages"][0]["sequence_length"]
        self.indexers = {"recommended": self.model["gsa"]["indexer"]}
        self.indexers["paper"] = {**self.indexers["recommended"], "activation": "sigmoid", "keep_first": 0, "keep_recent": 0,
                                  "head_reduction": "mean"}

    def command(self, *parts, capture=False):
        parts = [str(part) for part in parts]
        print("$ gsa " + shlex.join(parts), flush=True)
        result = subprocess.run([self.gsa, *parts], cwd=ROOT, stdout=subprocess.PIPE if capture else None, text=True)
        if result.returncode != 0:
            sys.exit(result.returncode if result.returncode > 0 else 1)
        return result.stdout

    def corpus(self):
        documents = own_text(self.text) if self.text else python_sources()
        total = sum(len(text) for _, text in documents)
        if total < 200_000:
            fail(f"the text expected at least 200,000 characters, got {total:,}; give more files to --text")
        path = self.out / "corpus.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for name, text in documents:
                file.write(json.dumps({"name": name, "text": text}) + "\n")
        say(f"corpus: {len(documents)} documents, {total / 1e6:.1f} million characters")
        return path

    def prepare(self):
        corpus = self.corpus()
        tokenizer = self.out / "tokenizer.json"
        self.command("tokenizer", "train", corpus, "--output", tokenizer, "--vocab-size", self.model["vocab_size"])
        self.command("data", "prepare", corpus, "--tokenizer", tokenizer, "--output", self.out / "tokens", "--held-out", HELD_OUT,
                     "--overwrite")

    def run_of(self, name, stage, model, checkpoint=None):
        """The run file of one stage: each is a run of its own, so that its checkpoint can be the start of several others."""
        run = {key: value for key, value in self.run_file.items() if key not in ("stages", "model_config")}
        run.update(output=str(self.out / name), stages=[stage], device=self.device,
                   data={**run["data"], "sources": [{"path": str(self.out / "tokens")}]})
        if self.text:
            run["data"]["packing"] = "packed"
        if checkpoint:
            run.update(checkpoint=str(checkpoint), model=model)
        else:
            run.update(model_config=self.run_file["model_config"], model=model)
        path = self.out / f"{name}.json"
        path.write_text(json.dumps(run, indent=2))
        return path

    def train(self, name, stage, model, checkpoint=None):
        self.command("train", "--config", self.run_of(name, stage, model, checkpoint))
        return self.out / name / "final"

    def train_together(self, names, stage, models, checkpoint):
        """Runs that do not need each other, side by side; what they say goes to <name>.log."""
        running = []
        for name, model in zip(names, models):
            path = self.run_of(name, stage, model, checkpoint)
            print(f"$ gsa train --config {shlex.quote(str(path))}  (writes {self.out / (name + '.log')})", flush=True)
            log = open(self.out / f"{name}.log", "w")
            running.append((name, log, subprocess.Popen([self.gsa, "train", "--config", str(path)], cwd=ROOT, stdout=log, stderr=log)))
        for name, log, process in running:
            code = process.wait()
            log.close()
            lines = (self.out / f"{name}.log").read_text().strip().splitlines()
            if code != 0:
                fail(lines[-1] if lines else f"gsa train failed for {name}")
            print(f"{name}: " + next((line for line in reversed(lines) if " loss " in line), ""), flush=True)
        return {name: self.out / name / "final" for name in names}

    def evaluate(self, name, checkpoint, rows, pictures=0):
        path = self.out / f"eval-{name}.json"
        self.command("eval", checkpoint, "--data", self.out / "tokens", "--rows", ",".join(rows), "--k", self.k, "--length", self.length,
                     "--sequences", self.sequences, "--batch", 8, "--packing", "packed" if self.text else "windows", "--pictures", pictures,
                     "--device", self.device, "--json", path, capture=True)
        return {row: result for row, result in zip(rows, read_json(path)["results"])}

    def run(self):
        marker = self.out / "made-by-demo"
        if self.out.exists() and any(self.out.iterdir()):
            if not marker.exists():
                fail(f"--output expected a folder that the demo may replace, got {self.out}, which holds something else")
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        marker.touch()
        dense_stage, warmup_stage, sparse_stage = self.run_file["stages"]
        self.prepare()
        say("dense stage: gates, no indexer")
        dense = self.train("dense", dense_stage, {"gsa": {"indexer": None}})
        say("indexer warm-up: paper and recommended, from the same dense model")
        models = [{"gsa": {"indexer": self.indexers[name], "budget": self.model["gsa"]["budget"]}} for name in ("paper", "recommended")]
        warmed = self.train_together(("paper", "recommended"), warmup_stage, models, dense)
        say("sparse stage: recommended")
        sparse = self.train("sparse", sparse_stage, {}, warmed["recommended"])

        say(f"evaluation at k = {self.k} of {self.length} tokens, {self.sequences} held-out sequences")
        on_dense = self.evaluate("dense", dense, ["dense", "random", "window", "oracle"])
        by_indexer = {name: self.evaluate(name, checkpoint, ["indexer"], pictures=3 if name == "recommended" else 0)["indexer"]
                      for name, checkpoint in warmed.items()}
        after = self.evaluate("sparse", sparse, ["indexer", "window", "dense"])
        rows = [("dense attention (the dense stage's model)", on_dense["dense"]), ("random selection", on_dense["random"]),
                ("first tokens + sliding window", on_dense["window"]), ("GSA, paper indexer", by_indexer["paper"]),
                ("GSA, recommended indexer", by_indexer["recommended"]), ("oracle: the highest true attention", on_dense["oracle"]),
                ("after the sparse stage: GSA, recommended", after["indexer"]), ("after the sparse stage: window", after["window"]),
                ("after the sparse stage: dense attention", after["dense"])]
        rows = [{**result, "title": title, "strong": title.startswith("GSA")} for title, result in rows]
        self.print_table(rows)
        completion = self.complete(sparse)
        self.report(rows, by_indexer["recommended"], completion)

    def print_table(self, rows):
        titles = ["", *(title for _, title, _ in demo_report.COLUMNS)]
        lines = [titles] + [[row["title"]] + [demo_report.number(row.get(key), digits) for key, _, digits in demo_report.COLUMNS]
                            for row in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
        say("the table")
        for line in lines:
            print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))))
        (self.out / "table.json").write_text(json.dumps([{k: v for k, v in row.items() if k not in ("pictures", "picture_tokens")}
                                                         for row in rows], indent=1))

    def complete(self, checkpoint):
        prompt = PROMPT
        if self.text:
            prompt = pathlib.Path(self.text[0]).read_text(encoding="utf-8")[:600]
        say("completion")
        result = json.loads(self.command("generate", checkpoint, "--prompt", prompt, "--max-new-tokens", 160, "--temperature", 0.8,
                                         "--top-p", 0.9, "--seed", 2, "--device", self.device, "--json", capture=True))
        print(f"{prompt}\033[1m{result['text']}\033[0m" if sys.stdout.isatty() else prompt + result["text"])
        print(f"(prefill {result['prefill_tokens_per_second']:.0f} tokens/s, decode {result['decode_tokens_per_second']:.0f} tokens/s)")
        return prompt, result["text"]

    def report(self, rows, pictured, completion):
        minutes = (time.time() - self.started) / 60
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        hardware = f"{os.cpu_count()} x {processor_name()}"
        parameters = json.loads(self.command("model", "info", self.out / "sparse" / "final", "--json", capture=True))["parameters"]
        intro = (f"<p>A model of {parameters['total']:,} parameters, trained from nothing on "
                 f"{'the given text' if self.text else 'the Python sources of this machine'}, in {minutes:.1f} minutes ({html.escape(hardware)}, device "
                 f"{self.device}, commit {commit or 'unknown'}). Every query sees {self.k} of up to {self.length} tokens; held out were whole "
                 f"documents, {self.sequences} sequences of {self.length} tokens.</p>")
        spread = max(row["loss_standard_error"] for row in rows)
        notes = (f"<p class=soft>All but the last rows share one set of model weights; both indexers were warmed up from it. "
                 f"Differences between rows are over the same sequences; the loss itself varies between sequences by "
                 f"&plusmn;{spread:.3f} nats (standard error). Recall and captured attention: against the dense attention of the same "
                 f"forward, over the queries that left keys out, mean over layers. The budget is fixed for every row, so that k is equal.</p>")
        indexer = self.indexers["recommended"]
        demo_report.write_page(self.out / "report.html", {
            "title": "Gated Sparse Attention: the demo", "intro": intro, "notes": notes, "rows": rows,
            "runs": {name: self.out / name for name in ("dense", "paper", "recommended", "sparse")}, "pictured": pictured,
            "tokenizer": self.out / "tokenizer.json", "keep_first": indexer["keep_first"], "keep_recent": indexer["keep_recent"],
            "prompt": completion[0], "completion": completion[1]})
        say(f"done in {minutes:.1f} minutes; the page: {self.out / 'report.html'}")


def processor_name():
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), flags=re.M)
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--text", nargs="+", metavar="FILE", help="train on these UTF-8 files instead of Python sources")
    parser.add_argument("--output", default="runs/demo", help="folder of everything the demo makes; it is replaced (default: runs/demo)")
    parser.add_argument("--device", default="auto", help="auto (CUDA when present), cpu or cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage (default: 1)")
    parser.add_argument("--gsa", default=str(ROOT / "build/release/bin/gsa"), help="the gsa program (default: the release build)")
    Demo(parser.parse_args()).run()


if __name__ == "__main__":
    main()
