"""The demo's own pieces: the corpus, the page and the mistakes it answers. The run itself is `./dev demo`."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import demo  # noqa: E402
import demo_report  # noqa: E402


class Corpus(unittest.TestCase):
    def test_text_from_afar_is_told_from_text_that_repeats_nearby(self):
        import random
        draw = random.Random(1)
        words = ["".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(120)]
        far = " ".join(words * 8).encode()  # 960 characters apart
        near = " ".join(word for word in words for _ in range(8)).encode()
        self.assertGreater(demo.repetition(far), 2)
        self.assertLess(demo.repetition(near), 1.3)

    def test_mistakes_are_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            latin = pathlib.Path(folder) / "latin1.txt"
            latin.write_bytes("caf\xe9".encode("latin-1"))
            for name, expected in ((latin, "is not (byte 3)"), (f"{folder}/none.txt", "does not exist")):
                result = subprocess.run([sys.executable, ROOT / "tools/demo.py", "--text", name, "--output", f"{folder}/out"],
                                        capture_output=True, text=True)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(expected, result.stderr)
                self.assertEqual(len(result.stderr.strip().splitlines()), 1)
            (pathlib.Path(folder) / "precious").mkdir()
            (pathlib.Path(folder) / "precious" / "thesis.txt").write_text("mine")
            result = subprocess.run([sys.executable, ROOT / "tools/demo.py", "--output", f"{folder}/precious"], capture_output=True, text=True)
            self.assertIn("holds something else", result.stderr)
            self.assertTrue((pathlib.Path(folder) / "precious" / "thesis.txt").exists())


class Page(unittest.TestCase):
    def test_ticks_are_round_and_inside(self):
        for low, high in ((0, 1), (2.31, 6.8), (0, 1000), (5, 5.001)):
            ticks = demo_report.round_steps(low, high)
            self.assertTrue(2 <= len(ticks) <= 11, ticks)
            self.assertTrue(all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks), ticks)

    def test_a_chart_holds_every_series_and_survives_none(self):
        chart = demo_report.line_chart("loss", [("a<b", [(1, 2.0), (2, 1.0)]), ("c", [(1, 3.0)])], "step")
        self.assertEqual(chart.count("<polyline"), 2)
        self.assertIn("a&lt;b", chart)
        self.assertEqual(demo_report.line_chart("loss", [("a", [])], "step"), "")

    def test_the_table_shows_absent_numbers_as_dashes(self):
        table = demo_report.table([{"title": "dense", "perplexity": 3.14159, "recall": None}])
        self.assertIn("<td>3.14</td>", table)
        self.assertIn("<td>–</td>", table)

    def test_a_strip_marks_what_was_kept_and_what_was_chosen(self):
        picture = {"query": 9, "attention": [0.1] * 10, "selected": [0, 4, 8, 9]}
        strip = demo_report.strip(picture, keep_first=1, keep_recent=2)
        self.assertEqual(strip.count('y="32"'), 4)
        self.assertEqual(strip.count('fill="var(--a)"'), 1)  # position 4


if __name__ == "__main__":
    unittest.main()
