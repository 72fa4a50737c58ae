"""Which decoder computes a checkpoint."""

from __future__ import annotations

from ..contracts import ModelFacts
from .gpt2 import Gpt2Transformer
from .latent_path import LatentTransformer
from .transformer import Transformer


def backbone_of(facts: ModelFacts) -> type[Transformer] | type[Gpt2Transformer]:
    """Return the decoder class of a checkpoint's `family`; build it with `from_tensors`."""
    if facts.decoding == "latent_ode":
        return LatentTransformer
    return Gpt2Transformer if facts.family == "gpt2" else Transformer
