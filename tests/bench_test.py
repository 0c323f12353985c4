"""gsa bench attention prints one JSON array whose rows have the promised fields, and leaves out what would take too long."""
import json
import os
import subprocess
import unittest

FIELDS = {"name", "phase", "activation", "index_keys", "length", "batch", "ms_median", "ms_min", "ms_max", "speedup_vs_dense", "parts", "tflops",
          "gbytes_per_s", "peak_memory_mib"}


def bench(*arguments):
    command = [os.environ["GSA_CLI"], "bench", "attention", "--device", "cpu", "--k", "32", "--keep-first", "2", "--keep-recent", "6", "--heads",
               "4", "--groups", "2", "--dim", "16", "--index-dim", "16", "--iterations", "2", "--warmup", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


class BenchTest(unittest.TestCase):
    def test_rows(self):
        result = bench("--lengths", "128,192", "--batches", "1,3", "--activations", "hard_sigmoid", "--reference-limit", "128", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)
        for row in rows:
            self.assertLessEqual(FIELDS, set(row))
        measured = [(row["phase"], row["name"], row["length"], row["batch"]) for row in rows if row["index_keys"] != "float8_e4m3fn"]
        self.assertEqual(len(set(measured)), len(measured))
        float8 = [(row["phase"], row["name"], row["length"], row["batch"]) for row in rows if row["index_keys"] == "float8_e4m3fn"]
        self.assertEqual(sorted(float8), sorted(row for row in measured if row[0] == "decode" and row[1] != "dense"))
        for length in (128, 192):
            for name in ("dense", "exact", "shared"):
                self.assertIn(("prefill", name, length, 1), measured)
            for batch in (1, 3):
                self.assertIn(("decode", "exact", length, batch), measured)
        self.assertIn(("prefill", "reference", 128, 1), measured)
        self.assertNotIn(("prefill", "reference", 192, 1), measured)
        for row in rows:
            self.assertEqual(row["index_keys"] is None, row["name"] == "dense")
            if row["name"] == "dense":
                self.assertEqual(row["speedup_vs_dense"], 1.0)
            elif row.get("skipped_at_ms") is None:
                self.assertGreater(row["parts"]["selection"], 0)

    def test_chunks(self):
        result = bench("--lengths", "96,192", "--phases", "chunk", "--chunks", "16,100", "--activations", "relu", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = [(row["name"], row["length"], row["queries"]) for row in json.loads(result.stdout)]
        self.assertEqual(rows, [(name, length, chunk) for length, chunk in ((96, 16), (192, 16), (192, 100)) for name in ("dense", "exact", "shared")])

    def test_index_keys(self):
        result = bench("--lengths", "128", "--batches", "1", "--phases", "decode", "--activations", "relu", "--index-keys", "float8_e4m3fn", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([row["index_keys"] for row in json.loads(result.stdout)], [None, "float8_e4m3fn"])

    def test_slow_calls_are_left_out(self):
        result = bench("--lengths", "128,256", "--phases", "prefill", "--activations", "relu", "--seconds", "0.000001", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        skipped = [row for row in json.loads(result.stdout) if "skipped_at_ms" in row]
        self.assertEqual({(row["name"], row["length"]) for row in skipped}, {("exact", 256), ("shared", 256)})
        self.assertTrue(all(row["ms_median"] is None for row in skipped))

    def test_bad_arguments(self):
        result = bench("--dtype", "int8")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--dtype expected", result.stderr)
        result = bench("--lengths", "64", "--phases", "chunk", "--chunks", "64,100")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--chunks expected one below the longest of --lengths, 64", result.stderr)
        for lengths in ("0", "-5", "8192,x", "1e30"):
            result = bench("--lengths", lengths)
            self.assertEqual(result.returncode, 2)
            self.assertIn("--lengths: expected a positive whole number, got " + lengths.split(",")[-1], result.stderr)


if __name__ == "__main__":
    unittest.main()
