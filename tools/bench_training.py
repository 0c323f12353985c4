#!/usr/bin/env python3
"""Dense training throughput: `gsa train` beside the same model written in Python PyTorch, on the same cores and data.

Prints one line each and the ratio; --json prints one JSON object. Both train a Llama (RMSNorm, RoPE, SwiGLU, grouped queries, tied
embeddings) with fused AdamW, clipping and cross entropy. The two take turns. Two numbers each: from the median step after a warm-up, and
from the fastest one, which other work on the machine disturbs least."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import token_folder

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = dict(vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True)


def prepare_data(folder):
    """A tokenizer and token shards from the standard library's sources."""
    sources = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))[:120]
    token_folder.write_token_folder(folder / "tokens", [path.read_text() for path in sources], MODEL["vocab_size"])


def run_gsa(folder, gsa, arguments):
    """Seconds of each step of `gsa train`, from the times in its metrics."""
    run = dict(output=str(folder / "run"), dtype=arguments.dtype, device=arguments.device, log_every=1,
               model={**MODEL, "gsa": {"gates": {"value_gate": False, "output_gate": False}, "indexer": None}},
               data={"sources": [{"path": str(folder / "tokens")}]}, checkpoints={"every": 10**6},
               stages=[dict(kind="dense", steps=arguments.steps, learning_rate=1e-3, sequence_length=arguments.length,
                            batch_size=arguments.batch)])
    (folder / "run.json").write_text(json.dumps(run))
    subprocess.run(["rm", "-rf", folder / "run"], check=True)
    done = subprocess.run([gsa, "train", "--config", folder / "run.json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    times = [json.loads(line)["time"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [b - a for a, b in zip(times, times[1:])][arguments.warmup:]


def python_model(device):
    import torch
    from torch import nn
    from torch.nn import functional as F

    D, H, G = MODEL["hidden_size"], MODEL["num_attention_heads"], MODEL["num_key_value_heads"]
    E = D // H

    def rotate(x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(D, eps=1e-5), nn.RMSNorm(D, eps=1e-5)
            self.q, self.k, self.v = (nn.Linear(D, n * E, bias=False) for n in (H, G, G))
            self.o = nn.Linear(H * E, D, bias=False)
            self.gate, self.up = (nn.Linear(D, MODEL["intermediate_size"], bias=False) for _ in range(2))
            self.down = nn.Linear(MODEL["intermediate_size"], D, bias=False)

        def forward(self, x, cos, sin):
            B, T, _ = x.shape
            h = self.norm1(x)
            q = rotate(self.q(h).view(B, T, H, E).transpose(1, 2), cos, sin)
            k = rotate(self.k(h).view(B, T, G, E).transpose(1, 2), cos, sin)
            v = self.v(h).view(B, T, G, E).transpose(1, 2)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + self.o(a.transpose(1, 2).reshape(B, T, H * E))
            h = self.norm2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(MODEL["vocab_size"], D)
            self.layers = nn.ModuleList(Layer() for _ in range(MODEL["num_hidden_layers"]))
            self.norm = nn.RMSNorm(D, eps=1e-5)
            nn.init.normal_(self.embedding.weight, std=0.02)

        def forward(self, tokens):
            T = tokens.shape[1]
            angles = torch.outer(torch.arange(T, device=tokens.device), 10000.0 ** (-torch.arange(0, E, 2, device=tokens.device) / E))
            x = self.embedding(tokens)
            for layer in self.layers:
                x = layer(x, angles.cos(), angles.sin())
            return F.linear(self.norm(x), self.embedding.weight)

    return Model().to(device)


def run_python(folder, arguments):
    """Seconds of each step of the same training in Python."""
    import contextlib

    import safetensors.torch
    import torch
    from torch.nn import functional as F

    torch.manual_seed(1)
    device = arguments.device
    shard = sorted((folder / "tokens").glob("train-*.safetensors"))[0]
    stream = safetensors.torch.load_file(shard)["tokens"].to(torch.int64)
    model = python_model(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=0.1), dict(params=rest, weight_decay=0.0)], lr=1e-3,
                                  betas=(0.9, 0.95), fused=True)
    autocast = torch.autocast(device, torch.bfloat16) if arguments.dtype == "bfloat16" else contextlib.nullcontext()
    B, L = arguments.batch, arguments.length
    seconds = []
    for step in range(arguments.steps):
        begin = time.perf_counter()
        starts = torch.randint(len(stream) - L - 1, (B,))
        tokens = torch.stack([stream[s:s + L + 1] for s in starts]).to(device)
        with autocast:
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begin)
    return seconds[arguments.warmup:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gsa", default=os.environ.get("GSA_CLI", ROOT / "build/release/bin/gsa"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="how often each runs")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare_data(folder)
        seconds = dict(gsa=[], python=[])
        for _ in range(arguments.rounds):
            seconds["gsa"] += run_gsa(folder, arguments.gsa, arguments)
            seconds["python"] += run_python(folder, arguments)
    tokens = arguments.batch * arguments.length
    speed = {name: dict(median=tokens / statistics.median(times), best=tokens / min(times)) for name, times in seconds.items()}
    ratio = {kind: speed["python"][kind] / speed["gsa"][kind] for kind in ("median", "best")}
    if arguments.json:
        print(json.dumps(dict(tokens_per_second=speed, time_of_gsa_over_python=ratio, length=arguments.length, batch=arguments.batch,
                              dtype=arguments.dtype, device=arguments.device)))
        return
    print(f"tokens/s                        median step   fastest step   ({arguments.device}, {arguments.dtype})")
    print(f"gsa train                       {speed['gsa']['median']:11.0f}   {speed['gsa']['best']:12.0f}")
    print(f"Python PyTorch                  {speed['python']['median']:11.0f}   {speed['python']['best']:12.0f}")
    print(f"time of gsa over Python         {ratio['median']:11.2f}   {ratio['best']:12.2f}   (target: at most 1.20)")


if __name__ == "__main__":
    main()
