"""Tiny random checkpoints of every system, in the layouts they are published in: `python tests/tiny_systems.py FOLDER`.

The lines of README.md's table of systems run on them. They say nothing sensible; they load, decode and train as the real ones do.
    diffugpt, diffullama, llada, dream   see tiny_families
    tess2, reward                        see tiny_simplex
    l2d                                  see tiny_latent; l2d-pickled: the same as pytorch_model.bin, for lad_engine.convert
    base                                 a causal Llama, for training
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_families import FAMILIES, make_family
from tiny_simplex import make_reward, make_tess

from tiny_checkpoint import make_tiny
from tiny_latent import as_pickle, make_tiny_latent


def make_systems(folder: str | Path) -> list[Path]:
    """Write them all below `folder` and return their folders."""
    folder = Path(folder)
    made = [make_family(folder / name, name) for name in FAMILIES]
    made += [make_tess(folder / "tess2"), make_reward(folder / "reward"), make_tiny_latent(folder / "l2d")]
    return [*made, as_pickle(make_tiny_latent(folder / "l2d-pickled")), make_tiny(folder / "base")]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("tiny_systems: expected one folder to write to.")
    print(*make_systems(sys.argv[1]), sep="\n")
