#!/usr/bin/env python3
"""Writes small random Llama folders made by `transformers`, each with expected.safetensors: tokens, the logits of
transformers in fp32, and an fp64 reference (transformers with its fp32 islands, norm and rotary angles, in fp64)."""
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

CASES = {
    "grouped": dict(num_attention_heads=8, num_key_value_heads=2, rms_norm_eps=1e-5),
    "tied": dict(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, rope_theta=500000.0),
    "llama3": dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=24, rope_theta=500000.0,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=32)),
    "linear_bias": dict(
        num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True,
        rope_scaling=dict(rope_type="linear", factor=4.0)),
}


def norm_in_input_dtype(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_in_input_dtype(self, x, position_ids):
    angles = position_ids[:, :, None].to(x.dtype) * self.inv_freq.to(x.dtype)[None, None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def main(folder):
    norm, rotary = modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward
    for index, (name, options) in enumerate(CASES.items()):
        torch.manual_seed(index)
        config = LlamaConfig(vocab_size=97, hidden_size=64, intermediate_size=112, num_hidden_layers=3,
                             max_position_embeddings=256, initializer_range=0.2, **options)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "norm" in parameter_name or parameter_name.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(folder / name, max_shard_size="150KB" if name == "grouped" else "1GB")
        tokens = torch.randint(0, config.vocab_size, (2, 50))
        with torch.no_grad():
            single = model(tokens).logits
            modeling_llama.LlamaRMSNorm.forward = norm_in_input_dtype
            modeling_llama.LlamaRotaryEmbedding.forward = rotary_in_input_dtype
            double = model.double()(tokens).logits
            modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward = norm, rotary
        save_file(dict(tokens=tokens, single=single.contiguous(), double=double.contiguous()),
                  str(folder / f"{name}.expected.safetensors"))


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    main(target)
