"""Captured selections: replays choose what the eager call chooses, and graphs that come and go do not disturb each other."""
import os
import unittest

import torch

torch.ops.load_library(os.environ["GSA_LIBRARY"])


def problem(keys, queries=1):
    return (torch.randn(1, queries, 4, 64, device="cuda").bfloat16(), torch.randn(1, keys, 64, device="cuda").bfloat16(),
            torch.rand(1, queries, 4, device="cuda"))


def select(inputs):
    return torch.ops.gsa.index_select(*inputs, None, None, 300, 300, 300, "fixed", "hard_sigmoid", 1, 4, 32)[0]


@unittest.skipUnless(torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9, "no Hopper GPU")
class DecodeGraph(unittest.TestCase):
    def capture(self, layers):
        select(layers[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = [select(layer) for layer in layers]
        return graph, found

    def check(self, graph, layers, found):
        for layer in layers:
            for tensor in layer:
                tensor.copy_(torch.rand_like(tensor))
        expected = [select(layer) for layer in layers]
        for _ in range(3):
            for indices in found:
                indices.fill_(-7)
            graph.replay()
            for indices, wanted in zip(found, expected):
                self.assertTrue(torch.equal(indices, wanted))

    def test_replays_agree_with_eager_calls(self):
        layers = [problem(keys) for keys in (700, 30000, 4000, 30000)]
        graph, found = self.capture(layers)
        self.check(graph, layers, found)

    def test_prompts(self):
        """Prefill: kernels that start before the ones ahead of them have ended, between each other and decode steps."""
        layers = [problem(keys, queries) for keys, queries in ((3000, 3000), (30000, 1), (8192, 8192), (70000, 500), (45000, 45000), (900, 900))]
        graph, found = self.capture(layers)
        self.check(graph, layers, found)

    def test_graphs_that_come_and_go(self):
        kept = [problem(20000), problem(900)]
        graph, found = self.capture(kept)
        for keys in (500, 50000, 7000):
            layers = [problem(keys), problem(20000)]
            other, others = self.capture(layers)
            self.check(other, layers, others)
            self.check(graph, kept, found)
            del other, others

    def test_graphs_beside_each_other(self):
        """Replays on two streams at once, and eager calls on a third."""
        shapes = (60000, 9000, 60000, 131072)
        graphs = [self.capture([problem(keys) for keys in shapes]) for _ in range(2)]
        layers = [problem(keys) for keys in shapes]
        expected = [select(layer) for layer in layers]
        wanted = []
        for graph, found in graphs:
            graph.replay()
            torch.cuda.synchronize()
            wanted.append([indices.clone() for indices in found])
        streams = [torch.cuda.Stream() for _ in range(3)]
        for _ in range(20):
            for stream, (graph, _) in zip(streams, graphs):
                with torch.cuda.stream(stream):
                    graph.replay()
            with torch.cuda.stream(streams[2]):
                eager = [select(layer) for layer in layers]
            torch.cuda.synchronize()
            for a, b in zip(eager + graphs[0][1] + graphs[1][1], expected + wanted[0] + wanted[1]):
                self.assertTrue(torch.equal(a, b))

    def test_steps_in_one_kernel(self):
        """Selection and attention of several sequences, captured and eager."""
        def step(batch, keys, key_dtype=torch.float8_e4m3fn):
            def random(*shape):
                return torch.randn(batch, *shape, device="cuda").bfloat16()
            return (random(1, 16, 128), random(keys, 4, 128), random(keys, 4, 128), random(1, 4, 64), random(keys, 64).to(key_dtype),
                    torch.rand(batch, 1, 4, device="cuda"))

        def decode(inputs):
            return torch.ops.gsa.sparse_decode(*inputs, None, None, 300, 300, 300, "fixed", "hard_sigmoid", 4, 32)[0]

        layers = [step(8, 30000), step(4, 900), step(8, 30000, torch.bfloat16), step(1, 50000), step(8, 30000)]
        expected = [decode(layer) for layer in layers]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = [decode(layer) for layer in layers]
        for _ in range(5):
            for out in found:
                out.fill_(-7)
            graph.replay()
            eager = [decode(layer) for layer in layers]
            for out, other, wanted in zip(found, eager, expected):
                self.assertTrue(torch.equal(out, wanted))
                self.assertTrue(torch.equal(other, wanted))

    def test_capture_across_streams(self):
        layers = [problem(30000), problem(50000)]
        expected = [select(layer) for layer in layers]
        torch.cuda.synchronize()
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                found = [select(layers[0])]
            found.append(select(layers[1]))
            torch.cuda.current_stream().wait_stream(side)
        for _ in range(20):
            graph.replay()
        torch.cuda.synchronize()
        for indices, wanted in zip(found, expected):
            self.assertTrue(torch.equal(indices, wanted))


if __name__ == "__main__":
    unittest.main()
