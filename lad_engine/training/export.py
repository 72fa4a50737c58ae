"""The adapter a run leaves behind, in our single-file form and as a PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..adapters.low_rank import Adapter, LowRank
from ..adapters.single_file import save_single_file
from ..adapters.write_peft import write_peft_folder
from ..contracts import AdapterFacts, ModelFacts
from .config import TrainConfig
from .lora import Trainable


def adapter_facts(config: TrainConfig, base: ModelFacts, mask_id: int, eos_id: int, step: int) -> AdapterFacts:
    """Return what a decoder must know about this run's adapter."""
    data = [Path(source).name for source in config.data]
    extra: dict[str, Any] = {"updates": step, "loss": config.loss, "max_length": config.max_length, "data": data}
    return AdapterFacts(
        name=config.name,
        rank=config.rank,
        alpha=float(config.rank if config.alpha is None else config.alpha),
        targets=config.targets,
        mask_token=config.mask_token,
        mask_id=mask_id,
        predicts_next_token=config.predicts_next_token,
        prompt_format="chat",
        system_prompt=config.system_prompt,
        corruption=config.corruption if config.objective == "lad" else "mask_only",
        profile=config.profile,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        uses_rslora=config.rslora,
        eos_id=eos_id,
        decoding=config.objective,
        extra=extra,
    )


def export_adapter(run: Path, trainable: Trainable, facts: AdapterFacts) -> tuple[Path, Path]:
    """Write `run/adapter.safetensors` (bf16) and `run/peft/` (fp32), each whole or not at all, and return both paths."""
    weights = {path: LowRank(a.detach().cpu(), b.detach().cpu(), trainable.scale) for path, (a, b) in trainable.pairs.items()}
    norms = {path: norm.detach().cpu().float() for path, norm in trainable.norms.items()}
    adapter = Adapter(facts, weights, norms)
    return save_single_file(run / "adapter.safetensors", adapter), write_peft_folder(run / "peft", adapter)
