#!/usr/bin/env python3
"""What FP8 (e4m3) index keys change in the selection: the share of the bf16 selection that stays, and the attention it captures.

The index file holds layerN.{index_query [T,J,I], index_key [T,I], head_weight [T,J], head_bias [J]}; the attention file, if given,
layerN.{query [T,H,E], key [T,G,E]} for some of the layers. Every 32nd query of the second half; kept tokens do not count."""
import argparse
import re

import safetensors.torch
import torch

BUDGETS = (256, 512, 1024, 2048)


def e4m3(x, scaled):
    """x rounded to e4m3 and back, with one scale a row or none."""
    scale = x.abs().amax(-1, keepdim=True) / 448 if scaled else 1.0
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", help="safetensors with index vectors")
    parser.add_argument("--attention", help="safetensors with queries and keys")
    parser.add_argument("--keep-first", type=int, default=4)
    parser.add_argument("--keep-recent", type=int, default=128)
    arguments = parser.parse_args()
    vectors = safetensors.torch.load_file(arguments.index)
    attention = safetensors.torch.load_file(arguments.attention) if arguments.attention else {}
    for layer in sorted({name.split(".")[0] for name in vectors}, key=lambda name: int(re.sub(r"\D", "", name))):
        query, key, weight, bias = (vectors[f"{layer}.{name}"].float() for name in ("index_query", "index_key", "head_weight", "head_bias"))
        tokens = len(key)
        rows, positions = torch.arange(tokens // 2, tokens, 32), torch.arange(tokens)
        future = positions > rows[:, None]
        kept = ((positions < arguments.keep_first) | (positions > rows[:, None] - arguments.keep_recent)) & ~future
        weights = None
        if f"{layer}.query" in attention:
            q, k = attention[f"{layer}.query"].float()[rows], attention[f"{layer}.key"].float()
            logits = torch.einsum("the,she->ths", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) / q.shape[2] ** 0.5
            weights = logits.masked_fill(future[:, None], -torch.inf).softmax(-1).mean(1)

        def select(index_key, budget):
            logits = torch.einsum("tji,si->tjs", query[rows], index_key) / query.shape[2] ** 0.5 + bias[:, None]
            scores = (torch.sigmoid(logits) * weight[rows][:, :, None]).sum(1).masked_fill(future | kept, -torch.inf)
            best = scores.topk(budget - arguments.keep_first - arguments.keep_recent).indices
            return torch.zeros_like(future).scatter_(1, best, True)

        for title, rounded in (("bf16", key), ("e4m3", e4m3(key, False)), ("e4m3, a scale a key", e4m3(key, True))):
            cells = []
            for budget in BUDGETS:
                exact, chosen = select(key, budget), select(rounded, budget)
                cell = f"{(exact & chosen).sum() / exact.sum():.4f}"
                if weights is not None:
                    cell += f" (mass {(weights * (chosen | kept)).sum(1).mean():.4f})"
                cells.append(cell)
            print(f"{layer:8} {title:20} " + "  ".join(f"k {budget}: {cell}" for budget, cell in zip(BUDGETS, cells)))


if __name__ == "__main__":
    main()
