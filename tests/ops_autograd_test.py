"""The ops as Python sees them: gradcheck in fp64 for every differentiable input, and opcheck (schema, Meta kernel, autograd registration)."""
import os
import unittest

import torch

torch.ops.load_library(os.environ["GSA_LIBRARY"])
ops = torch.ops.gsa


def leaf(*shape, scale=1.0):
    return (torch.randn(shape, dtype=torch.float64) * scale).requires_grad_()


def rows(batch, tiles, keys, density=0.6):
    """Random ascending rows padded with -1, and their counts."""
    chosen = torch.rand(batch, tiles, keys) < density
    order = torch.where(chosen, torch.arange(keys), keys).sort(-1).values
    return torch.where(order == keys, -1, order).int(), chosen.sum(-1).int()


class Autograd(unittest.TestCase):
    def setUp(self):
        self.seed = torch.seed() % 100000
        torch.manual_seed(self.seed)
        print(f"seed {self.seed}")

    def test_sigmoid_gate(self):
        inputs = (leaf(3, 5), leaf(3, 5))
        self.assertTrue(torch.autograd.gradcheck(ops.sigmoid_gate, inputs))
        torch.library.opcheck(ops.sigmoid_gate.default, inputs)

    def test_rotary(self):
        angle = torch.rand(4, 3, dtype=torch.float64)
        inputs = (leaf(2, 4, 3, 8), angle.cos(), angle.sin())
        self.assertTrue(torch.autograd.gradcheck(ops.rotary, inputs))
        self.assertTrue(torch.autograd.gradgradcheck(ops.rotary, inputs))
        torch.library.opcheck(ops.rotary.default, inputs)
        strided = torch.randn(2, 4, 8, 3).bfloat16().transpose(2, 3)
        torch.library.opcheck(ops.rotary.default, (strided, inputs[1].float(), inputs[2].float()))

    def test_rotary_append(self):
        query, key, value, gate = (torch.randn(2, 4, heads, 8) for heads in (6, 3, 3, 3))
        index_query, index_key, angle = torch.randn(2, 4, 2, 6), torch.randn(2, 4, 6), torch.rand(4, 3)
        places = (torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 6))
        angles = (angle.cos(), angle.sin())
        inputs = (query, index_query, *places, key, value, gate, index_key, *angles, *angles)
        torch.library.opcheck(ops.rotary_append.default, inputs)
        torch.library.opcheck(ops.rotary_append.default, (None, None, *places[:2], None, key, value, *[None] * 6))
        with self.assertRaises(ValueError):
            ops.rotary_append(query, index_query, *places, key.requires_grad_(), *inputs[6:])

    def test_index_scores(self):
        for activation in ("sigmoid", "hard_sigmoid", "relu"):
            query, key, weight, bias = leaf(2, 4, 3, 6), leaf(2, 6, 6), leaf(2, 4, 3), leaf(3)
            visible = torch.arange(6)[None] <= torch.arange(4)[:, None] + 2

            def scores(*tensors):
                return ops.index_scores(*tensors, activation).masked_select(visible)

            self.assertTrue(torch.autograd.gradcheck(scores, (query, key, weight, bias)))

    def test_sparse_attention(self):
        for tile, queries, keys in ((1, 6, 6), (4, 6, 9), (1, 1, 200)):
            query, key, value = leaf(2, queries, 4, 5), leaf(2, keys, 2, 5), leaf(2, keys, 2, 5)
            indices, counts = rows(2, -(-queries // tile), keys, 0.6 if keys < 100 else 0.05)
            if keys >= 100:
                indices, counts = indices[..., :20].contiguous(), counts.clamp_max(20)
            attended = (counts > 0).all()

            def attention(*tensors):
                out, lse = ops.sparse_attention(*tensors, indices, counts, tile)
                return (out, lse) if attended and lse.isfinite().all() else out

            self.assertTrue(torch.autograd.gradcheck(attention, (query, key, value)))
            torch.library.opcheck(ops.sparse_attention.default, (query, key, value, indices, counts, tile),
                                  test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))

    def test_index_losses(self):
        batch, queries, keys = 2, 5, 8
        for activation, reduction, keep in (("sigmoid", "mean", (0, 0)), ("hard_sigmoid", "max", (1, 2)), ("relu", "mean", (1, 0))):
            query, key = torch.randn(batch, queries, 4, 6, dtype=torch.float64), torch.randn(batch, keys, 2, 6, dtype=torch.float64)
            visible = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
            logits = torch.einsum("bthe,bshe->bths", query, key.repeat_interleave(2, 2)) / 6 ** 0.5
            lse = logits.masked_fill(~visible[:, None], -torch.inf).logsumexp(-1)
            bias = None if activation == "relu" else leaf(3)
            indexer = (leaf(batch, queries, 3, 4), leaf(batch, keys, 4), leaf(batch, queries, 3), bias, leaf())
            options = (activation, None, *keep, reduction)
            indices, counts = rows(batch, queries, keys)
            for op, attention in ((ops.index_loss_dense, (query, key, lse)), (ops.index_loss_selected, (query, key, indices, counts))):
                self.assertTrue(torch.autograd.gradcheck(lambda *tensors: op(*attention, *tensors, *options), indexer))
                torch.library.opcheck(op.default, (*attention, *indexer, *options))

    def test_selection_is_not_differentiable(self):
        query, key, weight = leaf(1, 6, 2, 4), leaf(1, 6, 4), leaf(1, 6, 2)
        indices, counts, statistic = ops.index_select(query, key, weight, None, None, 3, 3, 3, "fixed")
        self.assertFalse(statistic.requires_grad)
        torch.library.opcheck(ops.index_select.default, (query, key, weight, None, None, 3, 3, 3, "fixed"),
                              test_utils=("test_schema", "test_faketensor"))
        scores = torch.randn(1, 3, 9)
        torch.library.opcheck(ops.select_topk.default, (scores, torch.full((1, 3), 4, dtype=torch.int32), 5),
                              test_utils=("test_schema", "test_faketensor"))

    def test_python_sees_value_and_type_errors(self):
        with self.assertRaises(ValueError):
            ops.sigmoid_gate(torch.randn(2), torch.randn(3))
        with self.assertRaises(TypeError):
            ops.select_topk(torch.randn(1, 2, 3), torch.ones(1, 2), 2)


if __name__ == "__main__":
    unittest.main()
