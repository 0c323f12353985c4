#!/usr/bin/env python3
"""Checks the tree: includes point one way, files stay small, CUDA sources stay torch-free."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A folder may include the folders named here, and itself.
ALLOWED = {
    "base": set(),
    "cpu": {"base"},
    "cuda": set(),
    "io": {"base"},
    "text": {"base", "io"},
    "ops": {"base", "cpu", "cuda"},
    "attention": {"base", "ops"},
    "models": {"base", "io", "ops", "attention"},
    "train": {"base", "io", "text", "ops", "attention", "models"},
    "eval": {"base", "io", "text", "ops", "attention", "models"},
    "generate": {"base", "io", "text", "ops", "attention", "models"},
    "testing": {"base", "cpu", "cuda", "io", "text", "ops", "attention", "models"},
}
MAX_LINES = 400
# Hopper kernels may have 600 lines, each with its reason.
LONGER = {}
INCLUDE = re.compile(r'^\s*#\s*include\s+"gsa/([a-z_]+)/')
TORCH = re.compile(r"^\s*#\s*include\s+<(torch|ATen|c10)/")


def tracked():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in names.stdout.splitlines() if (ROOT / name).is_file()]


def problems(path):
    relative = path.relative_to(ROOT)
    if path.suffix not in {".h", ".cpp", ".cu", ".cuh", ".py", ".sh"}:
        return
    lines = path.read_text().splitlines()
    limit = 600 if str(relative) in LONGER else MAX_LINES
    if len(lines) > limit:
        yield f"{relative}: {len(lines)} lines, at most {limit}"
    if relative.parts[0] != "gsa" or len(relative.parts) < 3:
        return
    folder = relative.parts[1]
    is_test = re.search(r"_(test|bench)\.(cpp|cu)$", path.name) is not None
    torch_free = path.suffix in {".cu", ".cuh"} or path.name.endswith("_params.h") or folder in {"cuda", "cpu"}
    if folder not in ALLOWED:
        yield f"{relative}: the folder gsa/{folder} has no place in tools/check_layout.py"
        return
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if match and match[1] != folder and match[1] not in ALLOWED[folder] and not (is_test and match[1] == "testing"):
            yield f"{relative}:{number}: gsa/{folder} must not include gsa/{match[1]}"
        if TORCH.match(line):
            if torch_free and not is_test:
                yield f"{relative}:{number}: a torch header in torch-free code"
            if "<torch/torch.h>" in line:
                yield f"{relative}:{number}: torch/torch.h costs 18 s a file; include what is used"


def main():
    found = [problem for path in tracked() for problem in problems(path)]
    print("\n".join(found) or "layout: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
