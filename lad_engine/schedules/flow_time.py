"""The numbers of a latent ODE: Runge-Kutta tableaux, the grid of times, the temperature ladder, and how many evaluations they take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..errors import ConfigError

# torchdiffeq 0.2.5's rule for the first step of the adaptive pairs.
FIRST_STEP = 0.05


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta method: stage s is taken at t + nodes[s] dt from x + dt sum_j stages[s][j] k_j; the step adds dt sum weights k.

    error: weights of the difference to the embedded method, empty for a fixed step; order: of the pair. temperature_lead: the velocity's
    temperature is read this share of the step later than the stage.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()
    order: int = 0
    temperature_lead: float = 1.0


TABLEAUX = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), temperature_lead=0.5),
    "heun2": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "heun3": Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75)),
    # the 3/8 rule, as torchdiffeq has it
    "rk4": Tableau((0.0, 1 / 3, 2 / 3, 1.0), ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
    "fehlberg2": Tableau(
        (0.0, 0.5, 1.0), ((), (0.5,), (1 / 256, 255 / 256)), (1 / 512, 255 / 256, 1 / 512), (-1 / 512, 0.0, 1 / 512), 2, 0.0
    ),
    "adaptive_heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), (0.5, -0.5), 2, 0.0),
    "bosh3": Tableau(
        (0.0, 0.5, 0.75, 1.0),
        ((), (0.5,), (0.0, 0.75), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0.0),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        3,
        0.0,
    ),
}


@dataclass(frozen=True)
class FlowPlan:
    """How one token is integrated from t = 0 to `end` with at most `steps` evaluations of the model (its last one reads the token).

    A fixed solver takes (steps - 1) // stages equal intervals, an adaptive pair as many attempts at most. Without room for one the
    token is read at t = 0, where the flow path adds nothing.
    """

    solver: str
    steps: int
    end: float = 1.0

    @property
    def tableau(self) -> Tableau:
        return TABLEAUX[self.solver]

    @property
    def is_adaptive(self) -> bool:
        return bool(self.tableau.error)

    @cached_property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """(start, length) of every step of a fixed solver; none for an adaptive one."""
        count = 0 if self.is_adaptive else (self.steps - 1) // len(self.tableau.nodes)
        return tuple((self.end * i / count, self.end * (i + 1) / count - self.end * i / count) for i in range(count))

    @property
    def attempts(self) -> int:
        """Steps that an adaptive pair may try, the first stage of each being the last of the one before."""
        return (self.steps - 2) // (len(self.tableau.nodes) - 1) if self.is_adaptive and self.steps > 2 else 0

    @cached_property
    def stages(self) -> tuple[tuple[float, float], ...]:
        """(time, time of the temperature) of every stage of a fixed solver; where `is_at_end` holds the model is not asked."""
        lead, nodes = self.tableau.temperature_lead, self.tableau.nodes
        return tuple((start + node * dt, start + (node + lead) * dt) for start, dt in self.intervals for node in nodes)

    @property
    def asked(self) -> int:
        """Velocities a fixed solver asks the model for, the one at t = 0, which is the base model's, included."""
        return sum(not is_at_end(time) for time, _ in self.stages)

    @property
    def read_time(self) -> float:
        """When the token is read."""
        return self.end if self.intervals or self.attempts else 0.0

    @property
    def evaluations(self) -> int:
        """Evaluations per token as the literature counts them, stages (M - 1) + 1, velocities that are zero unasked included."""
        stages = len(self.tableau.nodes)
        return 2 + (stages - 1) * self.attempts if self.attempts else stages * len(self.intervals) + 1


def is_at_end(time: float) -> bool:
    """Return whether the path has arrived: (x1 - x) / (1 - t) has no value at t = 1, and the reference takes zero there."""
    return time >= 1.0 - 1e-9


def evaluations_for(solver: str, endpoints: int) -> int:
    """Return the evaluations per token of a fixed solver on `endpoints` times, both ends included (the reference's M).

    Raises:
        ConfigError: the solver has no fixed steps.
    """
    if TABLEAUX[solver].error:
        raise ConfigError(f"solver is {solver}, expected one of fixed steps: an adaptive pair has no number of endpoints. Give steps.")
    return len(TABLEAUX[solver].nodes) * (endpoints - 1) + 1


def velocity_temperature(time: float, start: float, power: float, end: float) -> float:
    """tau(t) = start (1 - t / end)^power up to `end` and zero beyond it; power 0 is constant."""
    if power == 0:
        return start
    return start * max(1.0 - time / end, 0.0) ** power if end > 0 else 0.0


def input_scale(time: float, sigma: float) -> float:
    """1 / sqrt((1-t)^2 sigma^2 + t^2): brings x_t = t x_1 + (1-t) x_0 to unit variance."""
    return ((1.0 - time) ** 2 * sigma**2 + time**2) ** -0.5
