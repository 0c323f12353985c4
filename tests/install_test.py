"""An installed gsa works with find_package(gsa) from a small outside project, and the installed command runs."""
import os
import pathlib
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ["GSA_LIBRARY"]).parent.parent


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


class Install(unittest.TestCase):
    def test_outside_project(self):
        cache = (BUILD / "CMakeCache.txt").read_text()
        if "GSA_SANITIZE:STRING=address" in cache:
            self.skipTest("a sanitized library needs its program sanitized too")
        with tempfile.TemporaryDirectory() as folder:
            prefix = pathlib.Path(folder) / "prefix"
            run("cmake", "--install", BUILD, "--prefix", prefix)
            run("cmake", "-S", HERE / "outside_project", "-B", f"{folder}/build", "-G", "Ninja",
                f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Debug")
            run("cmake", "--build", f"{folder}/build")
            self.assertEqual(run(f"{folder}/build/outside"), "8 keys, finite 1\n")
            self.assertIn("model", run(prefix / "bin" / "gsa", "--help"))


if __name__ == "__main__":
    unittest.main()
