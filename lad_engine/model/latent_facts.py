"""What config.json and the tensors of an L2D checkpoint say about its flow path; anything computed otherwise is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..contracts import ModelFacts
from ..errors import CheckpointError

LABELS = "model.data_label_embedder.weight"
EMBEDDER = "model.flow_token_embedder.embedder.layers_module.0.weight"
FIRST_LOW_RANK = "model.layers.0.self_attn.flow_q_proj.A"
LARGEST = 1e9
# An absent field has this value; the published configurations all do.
NEEDS = {
    "flow_representation_space": "mapping",
    "flow_representation_num_layers": 1,
    "flow_representation_normalize": True,
    "flow_representation_rescaling": "mult",
    "flow_to_lm_translation_depth": 2,
    "flow_to_lm_timestep_rescaling": 1.0,
    "preserve_behavior_at_flow_start": True,
    "full_dit_modulation": True,
    "modulate_hidden_states": False,
    "separate_flow_params": True,
    "timestep_modulation_num_layers": 2,
}


@dataclass(frozen=True)
class LatentFacts:
    """Sizes and habits of a flow path: Z flow_width; sigma, the scale of x_0; rank and alpha of its low-rank pairs.

    classes: labels of the guidance table, the null one not counted; 0 where there is no table. has_full_weights: the path has weights
    of its own instead of pairs beside the base's. freezes_modulation: modulation is taken relative to t = 0, gates are 1 there.
    """

    flow_width: int = 256
    sigma: float = 64.0
    rank: int = 32
    alpha: float = 32.0
    classes: int = 0
    has_full_weights: bool = False
    freezes_modulation: bool = False

    @classmethod
    def of(cls, facts: ModelFacts) -> LatentFacts:
        """Read them from the facts of a checkpoint."""
        return cls(**facts.extra)

    def to_extra(self) -> dict[str, Any]:
        """Return them as `ModelFacts.extra` holds them."""
        return asdict(self)


def read_latent(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> LatentFacts:
    """Read the facts of the flow path.

    Raises:
        CheckpointError: the checkpoint computes something else, or a size is wrong.
    """
    for name, wanted in NEEDS.items():
        if config.get(name, wanted) != wanted:
            raise CheckpointError(f"{where}: {name} is {config[name]!r}, expected {wanted!r}. This flow path computes no other.")
    if EMBEDDER not in shapes:
        raise CheckpointError(f"{where}: {EMBEDDER} is missing, expected the flow path of L2D. Download the checkpoint again.")
    flow_width = shapes[EMBEDDER][0]
    has_full_weights = FIRST_LOW_RANK not in shapes
    rank = 0 if has_full_weights else shapes[FIRST_LOW_RANK][1]
    alpha, sigma = config.get("flow_lora_alpha", rank), config.get("noise_rescaling", LatentFacts.sigma)
    for name, value in (("flow_lora_alpha", alpha), ("noise_rescaling", sigma)):
        # A path with weights of its own has pairs of no rank and no alpha.
        least = 0.0 if name == "flow_lora_alpha" else math.ulp(0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < LARGEST:
            raise CheckpointError(f"{where}: {name} is {value!r}, expected a number above 0 and below {LARGEST:g}. Download it again.")
    if flow_width % 2:
        raise CheckpointError(f"{where}: the flow path is {flow_width} wide, expected an even number. Download the checkpoint again.")
    classes = shapes[LABELS][0] - 1 if LABELS in shapes else 0
    freezes = bool(config.get("freeze_modulation_at_flow_start", False))
    return LatentFacts(flow_width, float(sigma), rank, float(alpha), classes, has_full_weights, freezes)


def latent_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the flow path in the reference's layout: pairs are `[in, r]` and `[r, out]`."""
    latent = LatentFacts.of(facts)
    Z, D, F, q = latent.flow_width, facts.width, facts.mlp_width, facts.query_heads * facts.head_width
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inside: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside), (out,)

    linear("model.flow_token_embedder.embedder.layers_module.0", Z, D)
    for name, out in (("flow_to_lm_encoder.embedder.layers_module", D), ("timestep_embedder.mlp", Z), ("modulation_head.mlp", D)):
        linear(f"model.{name}.0", Z, Z)
        linear(f"model.{name}.2", out, Z)
    if latent.classes:
        shapes[LABELS] = (latent.classes + 1, Z)
    sizes = {"self_attn.flow_q_proj": (q, D), "self_attn.flow_o_proj": (D, q)}
    sizes |= {"mlp.flow_gate_proj": (F, D), "mlp.flow_up_proj": (F, D), "mlp.flow_down_proj": (D, F)}
    for layer in range(facts.layers):
        prefix = f"model.layers.{layer}"
        linear(f"{prefix}.modulation_head.mlp.0", Z, Z)
        linear(f"{prefix}.modulation_head.mlp.2", 6 * D, Z)
        for name, (out, inside) in sizes.items():
            if latent.has_full_weights:
                shapes[f"{prefix}.{name}.weight"] = (out, inside)
                if facts.has_qkv_bias and name.endswith("q_proj"):
                    shapes[f"{prefix}.{name}.bias"] = (out,)
            else:
                shapes[f"{prefix}.{name}.A"], shapes[f"{prefix}.{name}.B"] = (inside, latent.rank), (latent.rank, out)
    return shapes
