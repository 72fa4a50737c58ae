"""The training loop: draw, corrupt, forward, weigh, step; checkpoints make it resumable bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..kernels.random.reference import DATA_ORDER
from .batches import BatchOrder, Position, lay_out_batch, window_length
from .checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Examples
from .lora import Trainable
from .metrics import MetricsFile, Progress
from .objectives.choice import OBJECTIVES
from .objectives.objective import CleanBatch, NoisedBatch, Setting
from .processes import Processes
from .validation import ValidationSet, validate

# Odd, so that runs of different seeds give every example a different noise key.
SEED_STRIDE = 0x9E3779B97F4A7C15
KEY_RANGE = 2**62
# Stored values mean something else under others of these, alpha beside them.
KEPT_ON_RESUME = ("rslora", "mask_token", "predicts_next_token")


@dataclass
class Counters:
    """Where a run stands. step: updates done; draw: micro-batches of one process (the noise counter); tokens: positions seen."""

    step: int = 0
    draw: int = 0
    tokens: int = 0
    position: Position = field(default_factory=Position)
    loss_sum: float = 0.0
    loss_count: int = 0

    def to_mapping(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("draw", "tokens", "loss_sum", "loss_count")}
        return {**plain, "epoch": self.position.epoch, "batch": self.position.batch}

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Counters:
        plain = {name: values[name] for name in ("step", "draw", "tokens", "loss_sum", "loss_count")}
        return cls(**plain, position=Position(values["epoch"], values["batch"]))


class Trainer:
    """One run over tokenised examples.

    model: a LanguageModel, its transformer in training mode where dropout is on; trainable: its attached pairs.
    export: called with the step at every checkpoint to write the adapter. should_stop: asked after every update.
    """

    def __init__(
        self,
        model: Any,
        ops: Any,
        trainable: Trainable,
        train: Examples,
        validation: Examples,
        config: TrainConfig,
        *,
        mask_id: int,
        eos_id: int,
        device: torch.device,
        processes: Processes,
        export: Callable[[int], None],
        should_stop: Callable[[], bool] = lambda: False,
        is_shown: bool = True,
    ) -> None:
        self.model, self.ops, self.trainable, self.config = model, ops, trainable, config
        self.mask_id, self.eos_id, self.device, self.processes = mask_id, eos_id, device, processes
        self.export, self.should_stop, self.is_shown = export, should_stop, is_shown
        self.objective = OBJECTIVES[config.objective](Setting(config, ops, mask_id, eos_id, tuple(trainable.head_parameters())))
        self.examples = train
        self.order = BatchOrder(train, config.batch_size, config.seed)
        self.validation = ValidationSet.build(validation, config.val_examples, config.batch_size, eos_id, config.max_length)
        self.parameters = list(trainable.named().values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.counters = Counters()
        self.run = Path(config.output)

    def resume(self) -> str:
        """Restore the last checkpoint and return one sentence about it.

        Raises:
            TrainingError: there is none, or it does not fit.
        """
        found = list_checkpoints(self.run)
        if not found:
            raise TrainingError(f"resume: {self.run} holds no checkpoint. Start without --resume.")
        state = load_checkpoint(found[-1], self.trainable, self.optimizer)
        self.counters = Counters.from_mapping(state)
        before, now = state["config"], self.config.to_mapping()
        self._check_meaning(before, now, state.get("base"))
        changed = sorted(name for name in now if name != "output" and before.get(name, now[name]) != now[name])
        said = f"Resumed at update {self.counters.step}" + (f" with other settings ({', '.join(changed)})" if changed else "")
        if state["data"] != self._data_name() or "seed" in changed:
            # Another order: begin its next epoch, so that none is half repeated.
            self.counters.position = Position(self.counters.position.epoch + 1, 0)
            return f"{said}; the data are others or in another order, from the beginning of an epoch."
        return f"{said}."

    def _check_meaning(self, before: dict[str, Any], now: dict[str, Any], base: str | None) -> None:
        """Refuse what would make another model of the stored values."""
        own = self.model.transformer.facts.fingerprint
        if base is not None and base != own:
            raise TrainingError(f"resume: base has fingerprint {own[:12]}, expected {base[:12]} as before. Give the --base of this run.")
        alphas = [values["rank"] if values["alpha"] is None else values["alpha"] for values in (before, now)]
        pairs = {"alpha": alphas, **{name: [before[name], now[name]] for name in KEPT_ON_RESUME}}
        for name, (was, given) in pairs.items():
            if was != given:
                raise TrainingError(f"resume: {name} is {given!r}, expected {was!r} as before. Leave it so, or start a new run.")

    def train(self) -> bool:
        """Run to `config.steps`; True when finished, False when stopped early. A checkpoint and the adapter are written either way."""
        config, counters = self.config, self.counters
        metrics = MetricsFile(self.run / "metrics.jsonl", counters.step) if self.processes.is_main else None
        progress = Progress(config.steps, counters.step, self.is_shown and self.processes.is_main)
        saved_at = begun_at = counters.step if counters.step else -1
        try:
            if counters.step == 0:
                self._validate(metrics, progress)
            while counters.step < config.steps and not self._is_stopping():
                tokens_before = counters.tokens
                values = self.update()
                progress.advance(counters.step, (counters.tokens - tokens_before) * self.processes.count)
                if counters.step % config.log_every == 0 or counters.step == config.steps:
                    values["loss"], counters.loss_sum, counters.loss_count = counters.loss_sum / counters.loss_count, 0.0, 0
                    values = {**values, "tokens": counters.tokens * self.processes.count, "tokens_per_s": progress.tokens_per_s()}
                    self._write(metrics, values)
                    progress.report(values)
                if counters.step % config.val_every == 0 or counters.step == config.steps:
                    self._validate(metrics, progress)
                if counters.step % config.save_every == 0 or counters.step == config.steps:
                    self.save()
                    saved_at = counters.step
            if saved_at != counters.step:
                self.save()
            elif begun_at == counters.step and self.processes.is_main:
                # Nothing was left to do; the process before may have ended after its checkpoint and before its adapter.
                self.export(counters.step)
        finally:
            progress.close()
        return counters.step >= config.steps

    def update(self) -> dict[str, Any]:
        """Make one optimizer update and return its step, loss, learning rate and gradient norm."""
        config, counters = self.config, self.counters
        first = counters.draw
        micro = [self.draw() for _ in range(config.grad_accumulation)]
        divisor = torch.stack([m.divisor for m in micro]).sum()
        self.processes.sum_([divisor])
        loss = torch.zeros((), device=self.device)
        noted: dict[str, float] = {}
        for place, batch in enumerate(micro):
            self.seed_dropout(first + place)
            part, numbers = self.loss(batch)
            part = part / divisor.clamp(min=1e-9)
            part.backward()
            loss += part.detach()
            for name, number in numbers.items():
                noted[name] = noted.get(name, 0.0) + float(number) / len(micro)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.processes.sum_([*gradients, loss])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        value = float(loss)
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise TrainingError(
                f"train: loss is {value} and the norm of its gradient {float(norm)} at update {counters.step + 1}, expected finite ones. "
                "Lower learning_rate."
            )
        rate = learning_rate(counters.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.loss_sum += value
        counters.loss_count += 1
        return {"step": counters.step, "loss": value, "learning_rate": rate, "grad_norm": float(norm), **noted}

    def draw(self) -> NoisedBatch:
        """Take the next batch of this process, lay it out, and let the objective corrupt it."""
        config, counters = self.config, self.counters
        # Every process walks the same order and keeps its own share.
        taken = [self.order.take(counters.position) for _ in range(self.processes.count)]
        indices = taken[self.processes.index]
        # N processes then make the same draws as one process with N times the accumulation.
        draw_step = torch.tensor(counters.draw * self.processes.count + self.processes.index)
        draw = float(self.ops.uniform(torch.tensor([config.seed]), torch.tensor([0]), draw_step, DATA_ORDER))
        counters.draw += 1
        window = window_length(int(self.examples.total[indices].max()), config.max_length, config.eos_pads, config.tail_power, draw)
        batch = lay_out_batch(self.examples, indices, self.eos_id, window)
        seeds = batch.keys ^ (config.seed * SEED_STRIDE % KEY_RANGE)
        counters.tokens += batch.ids.numel()
        clean = (batch.ids, batch.answer_start, batch.first_eos, seeds, draw_step)
        labels = torch.from_numpy(self.examples.label[indices]).to(self.device)
        return self.objective.draw(CleanBatch(*(tensor.to(self.device) for tensor in clean), update=counters.step, labels=labels))

    def seed_dropout(self, draw: int) -> None:
        """Seed torch's generator, which dropout reads, for one micro-batch: what it drops depends on the seed and the draw alone."""
        if self.config.dropout:
            torch.manual_seed((self.config.seed + (draw * self.processes.count + self.processes.index) * SEED_STRIDE) % KEY_RANGE)

    def loss(self, batch: NoisedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the undivided loss of one micro-batch and what the objective notes about it."""
        return self.objective.loss(self.model, batch)

    def save(self) -> None:
        """Write a checkpoint and the adapter (main process only)."""
        if self.processes.is_main:
            state = {**self.counters.to_mapping(), "data": self._data_name(), "config": self.config.to_mapping()}
            state["base"] = self.model.transformer.facts.fingerprint
            save_checkpoint(self.run, self.counters.step, self.trainable, self.optimizer, state, self.config.keep_last)
            self.export(self.counters.step)

    def _validate(self, metrics: MetricsFile | None, progress: Progress) -> None:
        if not self.processes.is_main or not self.validation.batches:
            return
        self.model.transformer.eval()
        own = getattr(self.objective, "validate", None)
        if own is not None:
            values = own(self.model, self.validation.batches, self.device)
        else:
            values = validate(self.model, self.ops, self.validation, self.mask_id, self.device)
        self.model.transformer.train(self.config.dropout > 0)
        self._write(metrics, {"step": self.counters.step, **values})
        shown = "  ".join(f"{name[9:].replace('_', ' ')} {value:.3f}" for name, value in values.items() if name.startswith("val_loss_"))
        recovered = "/".join(f"{100 * value:.0f}" for name, value in values.items() if name.startswith("val_recovered_"))
        progress.say(f"validation at update {self.counters.step}: loss {shown}; recovered {recovered} %")

    def _write(self, metrics: MetricsFile | None, values: dict[str, Any]) -> None:
        if metrics is not None:
            metrics.write(values)

    def _is_stopping(self) -> bool:
        if self.processes.count == 1:
            return self.should_stop()
        # One process told to stop stops all at the same update, or the others would wait for its gradients.
        flag = torch.tensor([float(self.should_stop())], device=self.device)
        self.processes.sum_([flag])
        return bool(flag > 0)

    def _data_name(self) -> str:
        keys = int(torch.from_numpy(self.examples.key).sum()) & (2**63 - 1)
        return f"{len(self.examples)}:{keys:x}:{self.examples.weight.sum():g}:{self.config.batch_size}"


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of update `step` (from 0): linear warm-up to learning_rate, then half a cosine down to min_lr_share of it."""
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(config.steps - warmup, 1)
    low = config.min_lr_share
    return config.learning_rate * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))
