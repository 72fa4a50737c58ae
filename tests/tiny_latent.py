"""A tiny random L2D checkpoint in the reference's key layout, beside the tiny bases of `tiny_checkpoint`.

`make_tiny_latent(folder)` writes config.json, tokenizer and model.safetensors; `python tests/tiny_latent.py FOLDER` does so from a shell,
and `python tests/tiny_latent.py FOLDER --pickle` writes pytorch_model.bin instead, as the reference saves its models.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from lad_engine.model.facts import read_facts
from lad_engine.model.latent_facts import LatentFacts, latent_shapes
from tiny_checkpoint import make_tiny, save_sharded

FLOW_WIDTH, RANK = 32, 4


def make_tiny_latent(
    folder: Path,
    family: str = "llama",
    classes: int = 0,
    has_full_weights: bool = False,
    freezes_modulation: bool = False,
    stores_copies: bool = False,
) -> Path:
    """Write a base of `tiny_checkpoint` and a flow path whose weights are all random: nothing in it is zero.

    stores_copies: also the base weights under the names by which the reference's adapted layers reach them.
    """
    make_tiny(folder, family=family)
    latent = LatentFacts(
        FLOW_WIDTH, rank=0 if has_full_weights else RANK, alpha=2.0 * RANK, classes=classes, has_full_weights=has_full_weights
    )
    facts = replace(read_facts(folder), extra=latent.to_extra())
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, shape in latent_shapes(facts).items():
        scale = 0.7 * shape[-1 if name.endswith("weight") else 0] ** -0.5 if len(shape) > 1 else 0.2
        tensors[name] = torch.randn(*shape, generator=generator) * scale
    if stores_copies:
        for name in [name for name in tensors if name.endswith(("q_proj.weight", "down_proj.weight")) and "flow" not in name]:
            head, _, tail = name.rpartition("_proj.weight")[0].rpartition(".")
            tensors[f"{head}.flow_{tail}_proj.wrapped_layer.weight"] = tensors[name].clone()
    save_sharded(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "flow_representation_space": "mapping",
        "flow_lora_rank": latent.rank,
        "flow_lora_alpha": latent.alpha,
        "noise_rescaling": 64.0,
    }
    config |= {"freeze_modulation_at_flow_start": freezes_modulation}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_pickle(folder: Path, shards: int = 1) -> Path:
    """Replace the weights of a folder by pytorch_model.bin, or by shards and their index; with the copies that an adapted layer exposes."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "flow_" in name and name.endswith(".A")]:
        layer, _, linear = name.removesuffix(".A").rpartition("flow_")
        tensors[f"{layer}flow_{linear}.wrapped_layer.weight"] = tensors[f"{layer}{linear}.weight"]
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")
        return folder
    homes = {name: f"pytorch_model-{index % shards + 1:05d}-of-{shards:05d}.bin" for index, name in enumerate(tensors)}
    for file in sorted(set(homes.values())):
        torch.save(OrderedDict((name, tensors[name]) for name, home in homes.items() if home == file), folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return folder


if __name__ == "__main__":
    made = make_tiny_latent(Path(sys.argv[1]))
    print(as_pickle(made) if "--pickle" in sys.argv else made)
