"""What an L2D run trains and leaves behind: a fresh flow path on a frozen base, and a model folder that decodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapters.whole_files import whole_file
from ..errors import ConfigError
from ..model.latent_facts import LatentFacts, latent_shapes
from ..model.latent_path import LatentTransformer
from ..model.weights import Checkpoint
from .config import TrainConfig
from .lora import Trainable

BASE_FILE, FLOW_FILE = "base.safetensors", "flow.safetensors"
NOT_COPIED = ("config.json", "model.safetensors.index.json")
COPIED = (".json", ".jinja", ".txt", ".model")
LABEL_SCALE = 0.02


@dataclass
class FlowTrainable(Trainable):
    """The parameters of a flow path by their own names; pairs and norms stay empty."""

    flow: dict[str, nn.Parameter] = field(default_factory=dict)

    def named(self) -> dict[str, nn.Parameter]:
        """Return every parameter by a stable name."""
        return self.flow


def open_flow_path(
    checkpoint: Checkpoint, config: TrainConfig, ops: Any, dtype: torch.dtype, device: torch.device
) -> tuple[LatentTransformer, FlowTrainable]:
    """Load a base with a fresh flow path beside it, or go on with the one the checkpoint has; only the flow path is trained.

    A fresh one changes nothing: its gates and merge weights are zero, and so is B of every pair; the rest is uniform in
    +-1/sqrt(in). Its parameters are fp32 whatever the base is.
    Raises:
        ConfigError: the checkpoint's flow path has another rank or number of classes than the run asks for.
    """
    facts, alpha = checkpoint.facts, float(config.rank if config.alpha is None else config.alpha)
    latent = LatentFacts(rank=config.rank, alpha=alpha, classes=config.flow_classes)
    if facts.decoding == "latent_ode":
        own = LatentFacts.of(facts)
        if (own.rank, own.classes) != (latent.rank, latent.classes):
            raise ConfigError(
                f"config: rank is {latent.rank} and flow_classes {latent.classes}, expected {own.rank} and {own.classes} as in the "
                f"flow path of {facts.name}. Set them so."
            )
        fresh: dict[str, Tensor] = {}
    else:
        facts = replace(facts, decoding="latent_ode", extra=latent.to_extra())
        fresh = fresh_tensors(facts, config.seed)
    tensors: Iterator[tuple[str, Tensor]] = (pair for part in (checkpoint.tensors(), fresh.items()) for pair in part)
    transformer = LatentTransformer.from_tensors(facts, tensors, ops, dtype, device)
    transformer.flow.float()
    for parameter in transformer.parameters():
        parameter.requires_grad_(False)
    for parameter in transformer.flow.parameters():
        parameter.requires_grad_(True)
    return transformer, FlowTrainable({}, {}, 1.0, dict(transformer.flow.named_parameters()))


def fresh_tensors(facts: Any, seed: int) -> dict[str, Tensor]:
    """Return the tensors of a flow path that adds nothing yet, by their checkpoint names."""
    generator, out = torch.Generator().manual_seed(seed), {}
    shapes = latent_shapes(facts)
    for name, shape in shapes.items():
        if name.endswith((".B", "modulation_head.mlp.2.weight", "modulation_head.mlp.2.bias")):
            out[name] = torch.zeros(shape)
        elif name.endswith("label_embedder.weight"):
            out[name] = torch.randn(shape, generator=generator) * LABEL_SCALE
        else:
            weight = shapes.get(name.removesuffix("bias") + "weight", shape)
            inside = shape[0] if name.endswith(".A") else weight[-1]
            out[name] = (torch.rand(shape, generator=generator) * 2 - 1) * inside**-0.5
    return out


def export_model(folder: Path, checkpoint: Checkpoint, transformer: LatentTransformer) -> Path:
    """Write base, flow path (bf16), tokenizer and config.json as one model folder; the base's file is written once."""
    folder.mkdir(parents=True, exist_ok=True)
    flow = {name: slot.detach().cpu().bfloat16().contiguous() for name, slot in transformer.flow.slots().items()}
    base = [name for name in checkpoint.names() if name not in flow]
    if not (folder / BASE_FILE).exists():
        with whole_file(folder / BASE_FILE) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors() if name in base}, temporary)
        for path in checkpoint.folder.iterdir():
            if path.suffix in COPIED and path.name not in NOT_COPIED and path.is_file():
                shutil.copyfile(path, folder / path.name)
    with whole_file(folder / FLOW_FILE) as temporary:
        save_file(flow, temporary)
    latent = LatentFacts.of(transformer.facts)
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    config |= {"decoding": "latent_ode", "noise_rescaling": latent.sigma}
    config |= {"flow_lora_rank": latent.rank, "flow_lora_alpha": latent.alpha}
    index = {"weight_map": {**dict.fromkeys(base, BASE_FILE), **dict.fromkeys(flow, FLOW_FILE)}}
    for name, value in (("config.json", config), ("model.safetensors.index.json", index)):
        with whole_file(folder / name) as temporary:
            temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return folder
