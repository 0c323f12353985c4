"""The model type `gated_sparse_attention` for Hugging Face transformers.

>>> import gsa.hf
>>> from transformers import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("a checkpoint folder of gsa")

Everything but attention is transformers' own Llama; attention is gsa.nn.GatedSparseAttention on the library's ops.
"""
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.models.llama import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .nn import GatedSparseAttention


class GsaConfig(LlamaConfig):
    model_type = "gated_sparse_attention"

    def __init__(self, gsa=None, **kwargs):
        super().__init__(**kwargs)
        self.gsa = gsa or {"gates": {"value_gate": False, "output_gate": False, "identity": False}, "indexer": None}


class GsaAttention(GatedSparseAttention):
    """The layer behind the interface of transformers' LlamaAttention."""

    def __init__(self, config, layer_idx):
        super().__init__(config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.gsa)
        self.layer_idx, self.layers = layer_idx, config.num_hidden_layers
        self.index_rotary_dim = config.gsa["indexer"]["index_rotary_dim"] if config.gsa["indexer"] else 0
        self.rope_theta = config.rope_parameters["rope_theta"]

    def index_rotary(self, position_ids, like):
        if not self.index_rotary_dim:
            return None, None
        exponent = torch.arange(0, self.index_rotary_dim, 2, device=like.device).float() / self.index_rotary_dim
        angles = position_ids[0, :, None].float() * self.rope_theta ** -exponent
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, position_ids=None, **kwargs):
        cos, sin = (x[0, :, : self.head_dim // 2] for x in position_embeddings)  # transformers repeats the halves

        def append(key, value, index_key):
            key, value = past_key_values.update(key.transpose(1, 2), value.transpose(1, 2), self.layer_idx)
            if index_key is not None:  # the cache's layers beyond the model's hold the index keys
                while len(past_key_values.layers) <= self.layers + self.layer_idx:
                    past_key_values.layers.append(DynamicLayer())
                row = index_key.unsqueeze(1)
                index_key = past_key_values.update(row, row[..., :0], self.layers + self.layer_idx)[0].squeeze(1)
            return key.transpose(1, 2), value.transpose(1, 2), index_key

        out = GatedSparseAttention.forward(self, hidden_states, (cos, sin), self.index_rotary(position_ids, cos),
                                           append if past_key_values is not None else None)
        return out, None


class RotaryEmbedding(LlamaRotaryEmbedding):
    """cos and sin in fp32 where the model computes in less, as the library's decoder makes them."""

    def forward(self, x, position_ids):
        return super().forward(x if x.dtype == torch.float64 else x[..., :1].float(), position_ids)


class GsaModel(LlamaModel):
    config_class = GsaConfig

    def __init__(self, config):
        super().__init__(config)
        for layer_idx, layer in enumerate(self.layers):
            layer.self_attn = GsaAttention(config, layer_idx)
        self.rotary_emb = RotaryEmbedding(config=config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() == 2 and not attention_mask.bool().all():
            raise ValueError("gated_sparse_attention: attention_mask expected no padding, got masked tokens; run rows of one length")
        return super().forward(input_ids=input_ids, attention_mask=None, **kwargs)


class GsaForCausalLM(LlamaForCausalLM):
    config_class = GsaConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = GsaModel(config)
        self.post_init()


AutoConfig.register("gated_sparse_attention", GsaConfig)
AutoModelForCausalLM.register(GsaConfig, GsaForCausalLM)
