"""Checkpoints of a run: parameters, optimizer and counters, written whole or not at all, without pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import TrainingError
from .lora import Trainable

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    run: Path, step: int, trainable: Trainable, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep_last: int
) -> Path:
    """Write `run/checkpoints/step-<step>` and remove all but the last `keep_last`; an interrupted write leaves only a hidden folder.

    state: plain JSON values (counters, data position, config); every random number is keyed by them.
    Raises:
        TrainingError: the folder cannot be written, or the disk is full.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    named = trainable.named()
    kept = {f"{key}/{name}": optimizer.state[p][key] for name, p in named.items() if p in optimizer.state for key in MOMENTS}
    moments = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
    try:
        partial.mkdir(parents=True)
        save_file({name: p.detach().cpu().contiguous() for name, p in named.items()}, partial / "trainable.safetensors")
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"output: {folder} cannot be written ({reason}). Make room and go on with --resume.") from error
    for old in list_checkpoints(run)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Return the finished checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def read_state(folder: Path) -> dict[str, Any]:
    """Return the counters of a checkpoint.

    Raises:
        TrainingError: unreadable, or another format.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"resume: {folder / 'state.json'} is unreadable ({error}). Remove that folder to use an older one.") from error
    if state.get("format") != FORMAT:
        raise TrainingError(f"resume: {folder} has format {state.get('format')}, expected {FORMAT}. Start a new run with init_adapter.")
    return state


def load_checkpoint(folder: Path, trainable: Trainable, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore parameters and moments, and return the counters.

    Raises:
        TrainingError: a file is unreadable or does not fit this run.
    """
    state = read_state(folder)
    try:
        values = load_file(folder / "trainable.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"resume: {folder} is unreadable ({error}). Remove that folder to resume from the one before.") from error
    trainable.load(values, f"resume {folder.name}")
    for name, parameter in trainable.named().items():
        stored = {key: moments[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in moments}
        if stored:
            # Fused AdamW keeps its step counter on the parameter's device.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in stored.items()}
    return state
