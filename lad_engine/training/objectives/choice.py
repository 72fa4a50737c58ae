"""The objectives by the names of `TrainConfig.objective`; a decoding family adds its own here."""

from __future__ import annotations

from collections.abc import Callable

from .lad import LadObjective
from .latent_ode import LatentObjective
from .masked import MaskedObjective
from .objective import Objective, Setting
from .simplex import SimplexObjective

OBJECTIVES: dict[str, Callable[[Setting], Objective]] = {
    "lad": LadObjective,
    "masked": MaskedObjective,
    "simplex": SimplexObjective,
    "latent_ode": LatentObjective,
}
