#!/usr/bin/env python3
"""A decoding step as a server replays it: CUDA graphs of one new token over long caches, against dense attention in graphs of the same caches.

Each graph goes over several layers' caches, so that little of them stays in L2; times are microseconds a layer, medians of replays.

  PYTHONPATH=python tools/bench_decode_graph.py [--length 131072]"""
import argparse
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gsa

HEADS, KV_HEADS, DIM, INDEX_HEADS, INDEX_DIM, K, LAYERS = 16, 4, 128, 4, 64, 2048, {1: 16, 8: 8, 32: 4}


def layer(batch, length):
    def random(*shape):
        return torch.randn(batch, *shape, device="cuda").bfloat16()

    return {"query": random(1, HEADS, DIM), "key": random(length, KV_HEADS, DIM), "value": random(length, KV_HEADS, DIM),
            "index_query": random(1, INDEX_HEADS, INDEX_DIM), "index_key": random(length, INDEX_DIM),
            "head_weight": torch.rand(batch, 1, INDEX_HEADS, device="cuda")}


def select(c):
    return gsa.ops.index_select(c["index_query"], c["index_key"], c["head_weight"], None, None, K, K, K, "fixed", "hard_sigmoid", 1, 4, 128)


def attend(c, indices, counts):
    return gsa.ops.sparse_attention(c["query"], c["key"], c["value"], indices, counts)


def decode(c):
    """Both in one op: one kernel from four sequences on."""
    return gsa.ops.sparse_decode(c["query"], c["key"], c["value"], c["index_query"], c["index_key"], c["head_weight"], None, None, K, K, K, "fixed",
                                 "hard_sigmoid", 4, 128)


def dense(c):
    return F.scaled_dot_product_attention(*(c[name].transpose(1, 2) for name in ("query", "key", "value")), enable_gqa=True)


def microseconds(work, layers, replays=25):
    for _ in range(2):
        for c in layers:
            work(c)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for c in layers:
            work(c)
    times = []
    for _ in range(replays + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / len(layers))
    return statistics.median(times[3:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=131072)
    length = parser.parse_args().length
    if length < 1:
        parser.error(f"--length: expected a positive number of tokens, got {length}")
    if not torch.cuda.is_available():
        sys.exit("bench_decode_graph: needs a CUDA device, found none")
    print(f"{torch.cuda.get_device_name()}, {length} keys, k {K}; us")
    for batch, count in LAYERS.items():
        layers = [layer(batch, length) for _ in range(count)]
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            whole = microseconds(dense, layers)
        print(f"batch {batch:2}  dense {whole:.1f}", flush=True)
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            for c in layers:
                c["index_key"] = c["index_key"].to(dtype)
                c["found"] = select(c)[:2]
            step = microseconds(lambda c: attend(c, *select(c)[:2]), layers)
            one = microseconds(decode, layers)
            print(f"batch {batch:2}  index keys {str(dtype)[6:]:13}  selection {microseconds(select, layers):.1f}  "
                  f"attention {microseconds(lambda c: attend(c, *c['found']), layers):.1f}  step {step:.1f}  {whole / step:.1f} x dense  "
                  f"one op {one:.1f}  {whole / one:.1f} x dense", flush=True)
        del layers
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
