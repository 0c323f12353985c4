#!/usr/bin/env python3
"""Time and peak memory of one layer's forward without gradients on a GPU: dense, per-query rows and shared rows, in chunks of queries and
at once. The weights are random: nearly every query chooses for itself, which is the worst case for the attention's time.

  PYTHONPATH=python tools/bench_layer.py [--length 131072]"""
import argparse
import sys

import torch


def layer(indexer, query_tile=1, query_chunk=0):
    import gsa.nn  # loads libgsa

    config = {
        "gates": {"value_gate": True, "output_gate": True, "identity": False},
        "indexer": {"index_heads": 4, "index_dim": 64, "activation": "hard_sigmoid", "index_rotary_dim": 64, "query_tile": query_tile,
                    "keep_first": 4, "keep_recent": 128, "tile_factor": 1.5} if indexer else None,
        "budget": {"rule": "fixed", "k_base": 2048, "k_min": 2048, "k_max": 2048},
    }
    torch.manual_seed(0)
    module = gsa.nn.GatedSparseAttention(2048, 16, 4, 128, config).cuda().bfloat16()
    module.query_chunk = query_chunk
    return module


def rotary(tokens, half):
    angle = torch.arange(tokens, device="cuda")[:, None] / 10000 ** (torch.arange(half, device="cuda") / half)
    return angle.cos().bfloat16(), angle.sin().bfloat16()


def slowly_turning(tokens):
    corners = torch.randn(tokens // 256 + 2, 2048, device="cuda")
    way = torch.linspace(0, 1, 257, device="cuda")[:-1][None, :, None]
    h = (corners[:-1, None] * (1 - way) + corners[1:, None] * way).reshape(-1, 2048)[:tokens]
    return (h + 0.3 * torch.randn_like(h))[None].bfloat16()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=131072, help="tokens T = S")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_layer: needs a CUDA device, found none")
    at_once = 1 << 30
    variants = {"dense": (False,), "exact": (True,), "exact, at once": (True, 1, at_once), "exact, chunks of 25344": (True, 1, 25344),
                "shared": (True, 64), "shared, at once": (True, 64, at_once)}
    h, turns, index_turns = slowly_turning(arguments.length), rotary(arguments.length, 64), rotary(arguments.length, 32)
    dense_peak = None
    with torch.inference_mode():
        for name, variant in variants.items():
            module, times = layer(*variant), []
            for _ in range(3):
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                module(h, turns, index_turns)
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            dense_peak = dense_peak or peak
            print(f"{name:24} {min(times):8.1f} ms  peak {peak:6.0f} MiB over the input  {peak / dense_peak:.3f} of dense", flush=True)


if __name__ == "__main__":
    main()
