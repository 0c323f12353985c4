"""Gated Sparse Attention: the library's ops and layers for PyTorch.

>>> import gsa
>>> indices, counts, statistic = gsa.ops.index_select(index_query, index_key, head_weight, head_bias, None, 64, 64, 64, "fixed")
>>> out, lse = gsa.ops.sparse_attention(query, key, value, indices, counts)

The library libgsa.so is looked for in $GSA_LIBRARY, then in build/release/lib of the source tree, then beside this package's installation
prefix (lib/). Importing `gsa.hf` registers the model type with transformers.
"""
import os
import pathlib

import torch

__all__ = ["ops", "library_path"]


def library_path() -> pathlib.Path:
    """The libgsa.so that this package uses. Raises FileNotFoundError naming the places looked at."""
    here = pathlib.Path(__file__).resolve().parent
    places = [here.parents[1] / "build" / "release" / "lib" / "libgsa.so", here.parents[1] / "lib" / "libgsa.so"]
    if "GSA_LIBRARY" in os.environ:
        places = [pathlib.Path(os.environ["GSA_LIBRARY"])]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError("libgsa.so: expected one of " + ", ".join(map(str, places)) + "; run ./dev build or set GSA_LIBRARY")


torch.ops.load_library(str(library_path()))
ops = torch.ops.gsa
