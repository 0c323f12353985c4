"""The layer as a torch.nn module: a long prefill in chunks of queries is the same as all at once, and selects for a chunk at a time."""
import unittest

import torch

import gsa.nn


def layer(query_tile):
    config = {
        "gates": {"value_gate": True, "output_gate": True, "identity": False},
        "indexer": {"index_heads": 2, "index_dim": 8, "activation": "hard_sigmoid", "index_rotary_dim": 4, "query_tile": query_tile,
                    "keep_first": 1, "keep_recent": 2, "tile_factor": 1.5},
        "budget": {"rule": "fixed", "k_base": 9, "k_min": 9, "k_max": 9},
    }
    torch.manual_seed(3)
    return gsa.nn.GatedSparseAttention(32, 4, 2, 8, config).double()


def rotary(tokens, half):
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10 ** torch.arange(half, dtype=torch.float64)
    return angle.cos(), angle.sin()


class LayerTest(unittest.TestCase):
    def test_prefill_in_chunks_is_the_same(self):
        for tile in (1, 4):
            module, tokens = layer(tile), 50
            h = torch.randn(2, tokens, 32, dtype=torch.float64)
            whole = module(h, rotary(tokens, 4), rotary(tokens, 2))
            self.assertTrue(whole.requires_grad)
            for chunk in (1, 7, 16, 48, 64):
                module.query_chunk = chunk
                calls = []
                select = module.select
                module.select = lambda index, tile: calls.append(index[0].shape[1]) or select(index, tile)
                with torch.no_grad():
                    parts = module(h, rotary(tokens, 4), rotary(tokens, 2))
                module.select = select
                self.assertEqual(sum(calls), tokens)
                self.assertLessEqual(max(calls), -(-chunk // tile) * tile)
                self.assertLess((whole - parts).abs().max().item(), 1e-12)

    def test_no_tokens(self):
        with torch.no_grad():
            self.assertEqual(layer(1)(torch.zeros(2, 0, 32, dtype=torch.float64), rotary(0, 4), rotary(0, 2)).shape, (2, 0, 32))


if __name__ == "__main__":
    unittest.main()
