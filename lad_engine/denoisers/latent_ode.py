"""L2D decoding: token by token, each read at the end of an ODE in a small latent space that the frozen model's flow path steers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, TokenChoice, TokenRule
from ..samplers.ode_solvers import integrate, integrate_adaptively
from ..samplers.purposes import FLOW_START, FLOW_TARGET, SAMPLE
from ..schedules.flow_time import FIRST_STEP, input_scale, is_at_end
from .latent_state import LatentState, check_canvas, check_rules, new_state


class LatentDecodable(Protocol):
    """What L2D decoding needs from a model; `model.latent_model.LatentModel` says what each call takes."""

    flow_width: int
    sigma: float
    classes: int
    hidden_like: tuple[int, torch.dtype]

    def open_cache(self, batch: int, capacity: int) -> Any: ...

    def prefill(self, ids: Tensor, lengths: tuple[int, ...], cache: Any) -> Tensor: ...

    def decode(
        self, tokens: Tensor, cache: Any, lengths: tuple[int, ...] | None = None, unread: tuple[bool, ...] | None = None
    ) -> Tensor: ...

    def choose(self, rows: Tensor, rule: TokenRule, uniforms: Tensor) -> TokenChoice: ...

    def logits(self, rows: Tensor) -> Tensor: ...

    def vectors(self, tokens: Tensor) -> Tensor: ...

    def table(self) -> Tensor: ...

    def grid(self, times: tuple[float, ...]) -> Any: ...

    def flow(
        self,
        x: Tensor,
        scale: Tensor | float,
        at: Any,
        classes: Tensor,
        hidden: Tensor,
        cache: Any,
        positions: Tensor,
        lengths: tuple[int, ...] | None = None,
        unread: tuple[bool, ...] | None = None,
        widths: tuple[int, ...] | None = None,
    ) -> Tensor: ...


class LatentOdeDecoder:
    """Continues batches of prompts with one model; keeps nothing between batches.

    x_t = t x_1 + (1-t) x_0, x_0 ~ N(0, sigma^2);  dx/dt = (x1_hat - x) / (1-t), x1_hat the flow vector of the token the model chooses
    from h_main + w(t) h_flow(x, t);  with guidance v = (1 + s) v(c) - s v(null), s = cfg_scale.
    """

    def __init__(self, model: LatentDecodable, ops: Any) -> None:
        self.model, self.ops = model, ops

    def begin(
        self,
        canvases: Sequence[Canvas],
        params: Sequence[SamplingParams],
        *,
        mask_id: int,
        eos_ids: tuple[int, ...],
        device: torch.device | str,
    ) -> LatentState:
        """Copy a batch of requests into buffers; see `new_state` for what is refused. The first step reads the prompts."""
        sizes = {"flow_width": self.model.flow_width, "hidden_like": self.model.hidden_like, "classes": self.model.classes}
        return new_state(canvases, params, mask_id, eos_ids, device, **sizes)

    def check(self, canvas: Canvas, params: SamplingParams, mask_id: int) -> None:
        """Raise what `begin` would for this request, without a tensor; any thread may ask."""
        check_canvas(0, canvas, mask_id)
        check_rules(0, params, params, self.model.classes)

    def prime_(self, state: LatentState) -> None:
        """Read the prompts into the cache and keep the row that predicts each one's first token.

        A captured driver calls this once per batch, before the steps; the eager one leaves it to the first step.
        """
        lengths = state.memory.prompt_lengths
        cache, n = self._cache(state), len(lengths)
        state.hidden[:n] = self.model.prefill(state.ids[:n, : max(lengths)], lengths, cache.view(0, n))
        state.memory.is_read = True

    def step_(self, state: LatentState) -> None:
        """Integrate every row's latent from noise, read a token at the end, and let the main path read it; in place.

        Static: shapes follow the buffers (and, where not `is_static`, host numbers known beforehand), and no tensor is read on the host,
        save that an adaptive solver which is not captured asks after each attempt which rows have arrived, to stop early with the
        same numbers.
        """
        cache = self._cache(state)
        if not state.is_static and not state.memory.is_read:
            self.prime_(state)
        made = min(state.taken_steps, state.max_steps - 1)
        lengths = None if state.is_static else tuple(length + made for length in state.prompt_lengths)
        evaluation = _Evaluation(self.model, self.ops, state, cache, lengths)
        rows, taken = evaluation.final_rows()
        uniforms = self.ops.uniform(state.seeds, state.step.view(1) * 0, state.row_steps, SAMPLE)
        self._accept(state, self.model.choose(rows, state.rule, uniforms[:, 0]), taken)
        state.hidden.copy_(self.model.decode(state.token, cache, lengths, None if state.is_static else state.resting))
        state.positions.add_(~state.done)
        state.taken_steps += 1

    def _accept(self, state: LatentState, choice: TokenChoice, taken: Tensor | int) -> None:
        is_active = ~state.done
        at = (state.columns == state.row_steps[:, None]) & is_active[:, None]
        state.before.copy_(state.answer)
        _write(state.token, choice.token, is_active)
        _write(state.answer, choice.token[:, None], at)
        _write(state.confidence, choice.confidence[:, None], at)
        _write(state.first_set, state.row_steps[:, None], at)
        _write(state.last_changed, state.row_steps[:, None], at)
        state.predicted.copy_(state.answer)
        state.nfe.add_((state.evaluations + taken) * is_active)
        state.answer_length.add_(is_active)
        state.row_steps.add_(is_active)
        is_last = state.answer_length >= state.steps
        stops = (choice.token[:, None] == state.eos_ids).any(1)
        state.acted.copy_(is_active)
        state.stopped_early.logical_or_(is_active & stops & ~is_last)
        state.done.logical_or_(stops | is_last)
        state.step.add_(1)

    def _cache(self, state: LatentState) -> Any:
        if state.memory.cache is None:
            state.memory.cache = self.model.open_cache(len(state.done), state.capacity)
            # Requests are copied into the state, and the cache follows them.
            state.memory.cache.positions = state.positions
        return state.memory.cache


class _Evaluation:
    """The velocity field of one token of every row."""

    def __init__(self, model: LatentDecodable, ops: Any, state: LatentState, cache: Any, lengths: tuple[int, ...] | None) -> None:
        self.model, self.ops, self.state, self.cache, self.lengths = model, ops, state, cache, lengths
        self.flow, self.plan = state.flow, state.flow.plan
        self.unread = None if state.is_static else state.resting
        self.widths = None if state.is_static else tuple(2 if is_guided else 1 for is_guided in state.guided)
        # The flow token stands beside the last token read.
        self.positions = state.positions - 1
        # Two for every evaluation, guided or not: what a row draws does not depend on its batch-mates' guidance.
        self.uniforms = ops.uniform(state.seeds, state.draws, state.row_steps, FLOW_TARGET).view(len(state.seeds), -1, 2)

    def final_rows(self) -> tuple[Tensor, Tensor | int]:
        """Return the rows `[B, D]` that the tokens are read from, and the evaluations `[B]` beyond those known beforehand."""
        state, plan = self.state, self.plan
        if plan.read_time == 0.0:
            # w(0) = 0: the base model's own rows.
            return state.hidden, 0
        noise = self.ops.uniform(state.seeds, state.components, state.row_steps, FLOW_START)
        x = torch.special.ndtri(noise) * self.model.sigma
        taken: Tensor | int = 0
        if plan.is_adaptive:
            tau = self._tau_at(torch.zeros_like(x[:, 0]))
            slope = self._slope(state.hidden[:, None], x, 1.0, 0, tau)
            self.draw = 0
            options = {"end": plan.end, "attempts": plan.attempts, "first_step": FIRST_STEP, "tolerance": self.flow.tolerance}
            x, attempts = integrate_adaptively(self._velocity_when, x, slope, plan.tableau, **options, reads_flags=not state.is_static)
            guided = (state.rule.cfg_scale > 0).long() + 1
            taken = attempts * (len(plan.tableau.nodes) - 1) * guided
        else:
            x = integrate(self._stage, x, plan.tableau, plan.intervals)
        at, scale = self._grid(len(self._times()) - 1), input_scale(plan.end, self.model.sigma)
        return self._rows(x[:, None], scale, at, state.classes[:, :1], self.unread, None)[:, 0], taken

    def _times(self) -> tuple[float, ...]:
        """Return the times the flow path is asked at, the reading of the token last; t = 0 is the base model's."""
        return (*(time for time, _ in self.plan.stages[1:] if not is_at_end(time)), self.plan.end)

    def _grid(self, index: int) -> Any:
        memory = self.state.memory
        if memory.grid is None:
            memory.grid = self.model.grid(self._times())
        grid = memory.grid
        return type(grid)(*(part[index] for part in grid))

    def _stage(self, stage: int) -> Callable[[Tensor], Tensor] | None:
        """Return the velocity of one stage of a fixed solver, None where it is zero."""
        time, state = self.plan.stages[stage][0], self.state
        if is_at_end(time):
            return None
        rule = dataclasses.replace(state.velocity, temperature=state.tau[stage].flatten(), top_k=state.tau_top_k[stage].flatten())
        if stage == 0:
            return lambda x: self._slope(state.hidden[:, None], x, 1.0, 0, rule)
        index = sum(not is_at_end(one) for one, _ in self.plan.stages[1:stage])

        def velocity(x: Tensor) -> Tensor:
            both = x[:, None].expand(-1, state.classes.shape[1], -1)
            rows = self._rows(both, input_scale(time, self.model.sigma), self._grid(index), state.classes, self.unread, self.widths)
            return self._slope(rows, x, 1.0 - time, stage, rule)

        return velocity

    def _velocity_when(self, t: Tensor, x: Tensor, unneeded: tuple[bool, ...] | None) -> Tensor:
        """Return the velocity at each row's own time; zero where that is 1."""
        state = self.state
        self.draw += 1
        rest = 1.0 - t
        scale = (rest.square() * self.model.sigma**2 + t.square()).rsqrt()
        both = x[:, None].expand(-1, state.classes.shape[1], -1)
        if unneeded is not None and self.unread is not None:
            unneeded = tuple(a or b for a, b in zip(unneeded, self.unread, strict=True))
        rows = self._rows(both, scale, t, state.classes, unneeded, self.widths)
        slope = self._slope(rows, x, rest.clamp(min=1e-9)[:, None], self.draw, self._tau_at(t))
        return torch.where((rest > 1e-9)[:, None], slope, 0.0)

    def _tau_at(self, t: Tensor) -> TokenRule:
        state = self.state
        tau = state.tau_start * (1.0 - t / self.plan.end).clamp(min=0.0) ** state.tau_power
        tau = tau[:, None].expand(-1, state.classes.shape[1]).flatten()
        return dataclasses.replace(state.velocity, temperature=tau, top_k=(tau == 0).long())

    def _rows(
        self, x: Tensor, scale: Tensor | float, at: Any, classes: Tensor, unread: tuple[bool, ...] | None, widths: tuple[int, ...] | None
    ) -> Tensor:
        state = self.state
        return self.model.flow(x, scale, at, classes, state.hidden, self.cache, self.positions, self.lengths, unread, widths)

    def _slope(self, rows: Tensor, x: Tensor, rest: float | Tensor, draw: int, rule: TokenRule) -> Tensor:
        """Return (x1_hat - x) / rest `[B, Z]` for rows `[B, W, D]`, guided where W is 2."""
        W = rows.shape[1]
        if W < self.state.classes.shape[1]:
            # At t = 0 both classes have the base's rows.
            rule = _first_of(rule, self.state.classes.shape[1])
        targets = self._targets(rows.flatten(0, 1), rule, self.uniforms[:, draw, :W].flatten()).view(-1, W, x.shape[1])
        slope = (targets[:, 0] - x) / rest
        if W == 1:
            return slope
        scale = self.state.rule.cfg_scale[:, None]
        # Selected, not scaled by zero: an unguided row keeps the bits it has alone.
        return torch.where(scale > 0, (1.0 + scale) * slope - scale * ((targets[:, 1] - x) / rest), slope)

    def _targets(self, rows: Tensor, rule: TokenRule, uniforms: Tensor) -> Tensor:
        """Return the estimate of x_1 `[N, Z]` from rows `[N, D]`."""
        estimate = self.flow.estimate
        if estimate == "sample":
            return self.model.vectors(self.model.choose(rows, rule, uniforms).token)
        logits, table = self.model.logits(rows), self.model.table()
        tau = rule.temperature[:, None]
        sharp = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
        weights = torch.where(tau > 0, torch.softmax(logits / torch.where(tau > 0, tau, 1.0), dim=1), sharp)
        mean = torch.cat([row @ table for row in weights.split(1)])
        if estimate == "average":
            return mean
        if estimate == "average_normalised":
            return torch.nn.functional.normalize(mean, dim=1) * math.sqrt(table.shape[1])
        # All flow vectors have one length, so the nearest is the one that points along.
        return self.model.vectors(torch.cat([row @ table.T for row in mean.split(1)]).argmax(1))


def _first_of(rule: TokenRule, width: int) -> TokenRule:
    """Return the rule of every first of `width` rows."""
    per_row = ("temperature", "top_k", "top_p", "drop_crossing", "full_confidence", "cfg_scale", "bias_values")
    return dataclasses.replace(rule, **{name: getattr(rule, name)[::width] for name in per_row})


def _write(buffer: Tensor, values: Tensor, where: Tensor) -> None:
    buffer.copy_(torch.where(where, values, buffer))
