#!/usr/bin/env python3
"""Times rotary, and rotary_append as a layer calls it: at 131,072 tokens, and for one new token in CUDA graphs of 24 layers. Needs a GPU.

Medians in microseconds; L2 is flushed before each long call. Bytes: what is read and written, each once.

  PYTHONPATH=python tools/bench_rotary.py"""
import statistics
import sys

import torch

import gsa

HEADS, KV_HEADS, DIM, INDEX_HEADS, INDEX_DIM, INDEX_ROTARY = 16, 4, 128, 4, 64, 32


def random(*shape):
    return torch.randn(*shape, device="cuda").bfloat16()


def angles(tokens, half):
    angle = torch.rand(tokens, half, device="cuda") * 100
    return angle.cos(), angle.sin()


def microseconds(work, flush=None, repeats=15):
    times = []
    for _ in range(repeats + 3):
        if flush is not None:
            flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times[3:])


def layer(batch, tokens, index_dtype):
    """The arguments of rotary_append: tokens behind a cache's."""
    cos, sin = angles(tokens, DIM // 2)
    index_cos, index_sin = angles(tokens, INDEX_ROTARY // 2)
    places = [random(batch, tokens, KV_HEADS, DIM), random(batch, tokens, KV_HEADS, DIM), random(batch, tokens, INDEX_DIM).to(index_dtype)]
    given = [random(batch, tokens, KV_HEADS, DIM) for _ in range(3)] + [random(batch, tokens, INDEX_DIM)]
    return [random(batch, tokens, HEADS, DIM), random(batch, tokens, INDEX_HEADS, INDEX_DIM), *places, *given, cos, sin, index_cos, index_sin]


def moved(arguments):
    sizes = [tensor.numel() * tensor.element_size() for tensor in arguments]
    return sum(sizes) + sizes[0] + sizes[1]  # the queries are read and written


def main():
    if not torch.cuda.is_available():
        sys.exit("bench_rotary: needs a CUDA device, found none")
    print(f"{torch.cuda.get_device_name()}, bf16")
    tokens, flush = 131072, torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for heads, dim, rotated in ((HEADS, DIM, DIM), (KV_HEADS, DIM, DIM), (INDEX_HEADS, INDEX_DIM, INDEX_ROTARY), (1, INDEX_DIM, INDEX_ROTARY)):
        x, (cos, sin) = random(1, tokens, heads, dim), angles(tokens, rotated // 2)
        time = microseconds(lambda: gsa.ops.rotary(x, cos, sin), flush)
        total = 2 * x.numel() * 2 + 2 * cos.numel() * 4
        print(f"rotary, {tokens} tokens, {heads} x {dim}, D {rotated}: {time:.1f} us, {total / time * 1e-6:.2f} TB/s", flush=True)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        arguments = layer(1, tokens, dtype)
        time = microseconds(lambda: gsa.ops.rotary_append(*arguments), flush)
        print(f"rotary_append, {tokens} tokens, index keys {str(dtype)[6:]}: {time:.1f} us, {moved(arguments) / time * 1e-6:.2f} TB/s", flush=True)
        for batch in (1, 8, 32):
            layers = [layer(batch, 1, dtype) for _ in range(24)]
            graph = torch.cuda.CUDAGraph()
            for arguments in layers:
                gsa.ops.rotary_append(*arguments)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                for arguments in layers:
                    gsa.ops.rotary_append(*arguments)
            print(f"rotary_append, 1 token, batch {batch}, index keys {str(dtype)[6:]}: {microseconds(graph.replay) / len(layers):.2f} us a layer", flush=True)


if __name__ == "__main__":
    main()
