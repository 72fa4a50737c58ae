"""Short controlled training trials, by which a recipe is chosen: the same budget and validation set, one setting changed at a time.

python -m bench.trials --steps 120 --threads 1            # goes on where it was: finished trials are kept, a running one resumes
python -m bench.trials --axes shift corruption --list     # what would be run

Every trial is a run of `lad_engine.train` in --runs. The table and bench/results/training/trials.json are rewritten after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.families.evidence import Part, claim, held_out, one_by_one
from bench.results import REPOSITORY, RESULTS, conditions, make_result, store, write_result
from lad_engine import Engine
from lad_engine import train as trainer
from lad_engine.adapters.reader import read_adapter
from lad_engine.errors import LadError
from lad_engine.model.weights import open_checkpoint
from lad_engine.text.codec import load_tokenizer
from lad_engine.training.checkpoint import list_checkpoints
from lad_engine.training.config import TrainConfig
from lad_engine.training.validation import LEVELS, ValidationSet, score_level

Q_V = ("q_proj", "v_proj")
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# axis -> what a trial is called -> the settings it changes; settings that the reference has already are its own trial.
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "shift": {"next position": {"predicts_next_token": True}, "same position": {"predicts_next_token": False}},
    "corruption": {name: {"corruption": name} for name in ("paper", "code", "mask_only", "mixed")},
    "rank": {f"rank {rank}": {"rank": rank, "alpha": 2.0 * rank} for rank in (64, 128)},
    "targets": {"q and v": {"targets": Q_V}, "all linear": {"targets": ALL_LINEAR}},
    "data": {"the base's own answers": {"data": ("self_answers",)}, "texts of data sets": {"data": ("permissive",)}},
    "learning rate": {f"learning rate {rate:g}": {"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)},
    "whole answers masked": {f"{share:.0%} masked whole": {"whole_mask_share": share} for share in (0.0, 0.1, 0.3)},
}
REFERENCE = "reference"
# What changes nothing a trial learns.
NO_SETTINGS = ("output", "threads", "plot", "log_every")
COUNTED = (
    "Every trial makes the same number of updates of the same batch from the same base and seed; one setting differs from the reference. "
    "Validation: the reference's held-out texts less any whose question or answer it trains on, the same for every trial, with the same "
    "noise; loss is in nats per damaged answer token, over 30, 60 and 100 % masked and structured damage together."
)


@dataclass(frozen=True)
class Trial:
    """One run: what it is called, the axis it changes ("" for the reference), and its whole config."""

    name: str
    axis: str
    config: TrainConfig

    @property
    def key(self) -> str:
        """Name the settings, so that a finished trial of others is not taken for this one."""
        settings = {name: value for name, value in self.config.to_mapping().items() if name not in NO_SETTINGS}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def trials(reference: TrainConfig, axes: Sequence[str], runs: Path) -> list[Trial]:
    """Return the reference and one trial per setting of the axes that differs from it; a data axis picks from the reference's files."""
    out = [Trial(REFERENCE, "", reference)]
    for axis in axes:
        for name, changes in AXES[axis].items():
            config = _changed(reference, changes)
            if config is not None and config != reference:
                out.append(Trial(name, axis, config))
    return [dataclasses.replace(one, config=dataclasses.replace(one.config, output=str(runs / one.key))) for one in out]


def _changed(reference: TrainConfig, changes: dict[str, Any]) -> TrainConfig | None:
    if "data" not in changes:
        return dataclasses.replace(reference, **changes)
    kept = [source for source in reference.data if Path(source).name.startswith(changes["data"])]
    return dataclasses.replace(reference, data=tuple(kept)) if kept else None


def trained(trial: Trial) -> bool:
    """Train, or go on with, one trial; False where it was told to stop."""
    run = Path(trial.config.output)
    if not _is_finished(run, trial.config.steps):
        settings = run.with_suffix(".toml")
        run.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("\n".join(_toml(trial.config)) + "\n", encoding="utf-8")
        resume = ["--resume"] if list_checkpoints(run) else []
        status = trainer.main(["--config", str(settings), *resume])
        if status:
            raise RuntimeError(f"trials: {trial.name} ended with status {status}. Correct what the line above says, then run this again.")
    return _is_finished(run, trial.config.steps)


def _is_finished(run: Path, steps: int) -> bool:
    found, adapter = list_checkpoints(run), run / "adapter.safetensors"
    if not (found and found[-1].name.endswith(f"{steps:08d}") and adapter.is_file()):
        return False
    # A run killed behind its last checkpoint leaves the adapter of the one before.
    return read_adapter(adapter).facts.extra.get("updates") == steps


def _toml(config: TrainConfig) -> Iterator[str]:
    """Write the settings that are no default, as TOML."""
    defaults = TrainConfig().to_mapping()
    for name, value in config.to_mapping().items():
        if value is not None and value != defaults[name]:
            # JSON's texts, numbers, booleans and lists of them are TOML's.
            yield f"{name} = {json.dumps(value)}"


@torch.inference_mode()
def measured(trial: Trial, data: ValidationSet) -> dict[str, Any]:
    """Return loss and recovered share by level, and (loss, tokens) per text, of a finished trial."""
    settings = {"device": trial.config.device, "dtype": "float32", "mask_token": trial.config.mask_token}
    engine = Engine.load(trial.config.base, adapter=str(Path(trial.config.output) / "adapter.safetensors"), **settings)
    device = torch.device(engine.config.device)
    out: dict[str, Any] = {"parameters": read_adapter(Path(trial.config.output) / "adapter.safetensors").parameters}
    texts = [[0.0, 0.0] for _ in data.batches]
    for name, variant, level in LEVELS:
        totals = [score_level(engine.model, engine.ops, batch, engine.mask_id, device, variant, level).tolist() for batch in data.batches]
        loss, right, count = (sum(total[part] for total in totals) for part in range(3))
        out |= {f"loss_{name}": loss / max(count, 1.0), f"recovered_{name}": right / max(count, 1.0)}
        for text, total in zip(texts, totals, strict=True):
            text[0], text[1] = text[0] + total[0], text[1] + total[2]
    return {**out, "loss": sum(loss for loss, _ in texts) / max(sum(count for _, count in texts), 1.0), "texts": texts}


def key_of(trial: Trial, data: ValidationSet) -> str:
    """Name a trial's settings and the texts it is judged on."""
    texts = hashlib.sha256(b"".join(batch.ids.numpy().tobytes() for batch in data.batches)).hexdigest()[:12]
    return f"{trial.key}-{texts}"


def rows_of_other_axes(kept: dict[str, dict[str, Any]], todo: Sequence[Trial], data: ValidationSet) -> list[dict[str, Any]]:
    """Return what earlier calls measured on axes that this one leaves out, against the same reference; none where that has changed."""
    if key_of(todo[0], data) not in kept:
        return []
    axes = {trial.axis for trial in todo}
    return [row for row in kept.values() if row["axis"] not in axes]


def row_of(trial: Trial, data: ValidationSet, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier call measured of this trial on these texts, else measure it."""
    key = key_of(trial, data)
    if key in kept:
        return {**kept[key], "trial": trial.name, "axis": trial.axis}
    changes = {name: value for name, value in trial.config.to_mapping().items() if name not in ("output", "threads")}
    return {
        "trial": trial.name,
        "axis": trial.axis,
        "key": key,
        "config": changes,
        "commit": conditions()["commit"],
        **measured(trial, data),
    }


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to every row how much better its loss is than the reference's, text by text, and whether it is the best of its axis."""
    reference = next(row for row in rows if row["trial"] == REFERENCE)
    out = []
    for row in rows:
        sides: list[list[Part]] = [[(loss, count) for loss, count in one["texts"]] for one in (row, reference)]
        of_axis = [one["loss"] for one in rows if one["axis"] == row["axis"] or one is reference]
        is_best = bool(row["axis"]) and row["loss"] == min(of_axis)
        out.append({**row, "against_reference": claim("loss", *sides, lower_is_better=True), "is_best_of_axis": is_best})
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the trials as Markdown, axis by axis; what beats the reference and its axis stands in bold."""
    head = ["axis", "setting", "loss", "better than the reference by (95 %)", "recovered at 30 / 60 / 100 %", "structured", "parameters"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        found = row["against_reference"]
        better = f"{found['gain']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" if row["axis"] else ""
        shares = " / ".join(f"{row[f'recovered_masked_{level}']:.1%}" for level in (30, 60, 100))
        name = f"**{row['trial']}**" if row["is_best_of_axis"] else row["trial"]
        cells = [row["axis"], name, f"{row['loss']:.3f}", better, shares, f"{row['recovered_structured']:.1%}", f"{row['parameters']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return {row["key"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def _reference(options: argparse.Namespace) -> TrainConfig:
    """Return the config every trial begins from: the file's, with the budget of a trial."""
    given = {name: value for name in ("base", "data", "device", "threads") if (value := getattr(options, name)) is not None}
    budget = {"steps": options.steps, "val_examples": 0, "val_every": options.steps, "save_every": options.save_every, "keep_last": 1}
    return TrainConfig.load(options.config, {**given, **budget, "warmup_steps": min(options.steps // 10 + 1, 40), "plot": False})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all trials are done, 130 where one was told to stop, 2 after a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=REPOSITORY / "bench" / "default_adapter" / "train.toml", help="the reference's")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), metavar="AXIS", help=f"of {', '.join(AXES)}")
    parser.add_argument("--steps", type=int, default=120, help="updates of every trial")
    parser.add_argument("--examples", type=int, default=48, help="held-out texts")
    parser.add_argument("--save-every", type=int, default=20, help="updates that an interruption loses at most")
    parser.add_argument("--base", default=None)
    parser.add_argument("--data", nargs="+", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/trials"))
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and say nothing about a recipe")
    parser.add_argument("--out", type=Path, default=RESULTS / "training" / "trials.json", help="the table is written beside it, as .md")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.examples, options.save_every = 2, 4, 1
    try:
        return _run(options)
    except (LadError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    reference = _reference(options)
    todo = trials(reference, options.axes, options.runs)
    if options.list:
        for trial in todo:
            print(f"{trial.axis or '-'}: {trial.name}, {'trained' if _is_finished(Path(trial.config.output), options.steps) else 'to do'}")
        return 0
    checkpoint = open_checkpoint(reference.base)
    codec = load_tokenizer(checkpoint.folder)
    eos_id = codec.eos_id if codec.eos_id is not None else checkpoint.facts.eos_ids[0]
    data = one_by_one(held_out(reference, codec), options.examples, eos_id, reference.max_length)
    kept, rows = _kept(options.out), []
    others = rows_of_other_axes(kept, todo, data)
    for number, trial in enumerate(todo, 1):
        print(f"{number}/{len(todo)} {trial.axis}: {trial.name}", file=sys.stderr, flush=True)
        if not trained(trial):
            print("stopped; the same command goes on here.", file=sys.stderr)
            return 130
        rows.append(row_of(trial, data, kept))
        result = make_result("trials", COUNTED, compared([*rows, *others]), is_quick=options.quick)
        store(options.out, result)
        options.out.with_suffix(".md").write_text(table(result["rows"]), encoding="utf-8")
    write_result(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
