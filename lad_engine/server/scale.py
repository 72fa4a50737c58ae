"""What the operator of several replicas chose beside the settings of each."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Scale:
    """How many replicas there are and what each takes.

    min_replicas, max_replicas: Ray keeps between so many. requests_per_replica: more requests than this per replica, waiting ones
    counted, bring another one; None is one full batch (max_rows). adapters_per_replica: adapters a replica holds at once, None for all;
    the first so many are loaded at its start, and none may have a larger rank or other layers. cpus_per_replica, gpus_per_replica: what
    Ray reserves. fronts: processes that hold connections. tries: replicas that may be lost before a request fails.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    requests_per_replica: int | None = None
    adapters_per_replica: int | None = None
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    fronts: int = 1
    tries: int = 3

    def __post_init__(self) -> None:
        for name in ("min_replicas", "max_replicas", "requests_per_replica", "adapters_per_replica", "fronts", "tries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1.")
        if self.max_replicas < self.min_replicas:
            raise ConfigError(f"max_replicas is {self.max_replicas}, expected at least min_replicas={self.min_replicas}. Raise it.")
        for name in ("cpus_per_replica", "gpus_per_replica"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 0.")
