"""Loads every checkpoint below a folder with transformers and compares its logits with expected.safetensors beside it."""
import pathlib
import sys

import gsa.hf  # noqa: F401 (registers the model type)
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def check(folder):
    expected = load_file(folder / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokens = expected["tokens"]
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
        cached = model(tokens[:, :25], use_cache=True)
        rest = [model(tokens[:, t:t + 1], past_key_values=cached.past_key_values).logits for t in range(25, tokens.shape[1])]
    whole = (logits - expected["logits"]).abs().max().item()
    stepwise = (torch.cat([cached.logits, *rest], 1) - expected["logits"]).abs().max().item()
    print(f"{folder.name}: largest difference {whole:.1e}, through the cache {stepwise:.1e}")
    return max(whole, stepwise) < 1e-5 * (1 + expected["logits"].abs().max().item())  # transformers norms and rotates in fp32


def main():
    folders = sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/expected.safetensors"))
    results = [check(folder) for folder in folders]
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
