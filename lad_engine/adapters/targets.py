"""Which linear modules an adapter names, in PEFT's own terms, and how many parameters that makes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..contracts import ModelFacts
from ..model.weights import expected_shapes

ALL_LINEAR = "all-linear"


def linear_shapes(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """Every linear module of a base by HF path with its (out, in), layer by layer, lm_head last."""
    stored = expected_shapes(facts)
    in_layers = {name.removesuffix(".weight"): shape for name, shape in stored.items() if name.endswith("_proj.weight")}
    return {**in_layers, "lm_head": (facts.vocab_size, facts.width)}


def is_target(
    module: str,
    targets: str | Sequence[str],
    *,
    exclude: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
) -> bool:
    """Say whether PEFT would adapt `module`: a string is a full-match regex (or "all-linear"), a list holds paths or path endings.

    `layers` (PEFT: layers_to_transform) limits the endings of a list to those layer numbers, not full paths or a regex.
    """
    if exclude and (re.fullmatch(exclude, module) if isinstance(exclude, str) else _ends_with(module, exclude)):
        return False
    if isinstance(targets, str):
        return module != "lm_head" if targets.lower() == ALL_LINEAR else re.fullmatch(targets, module) is not None
    if module in targets:
        return True
    if not _ends_with(module, targets):
        return False
    wanted = [layers] if isinstance(layers, int) else list(layers or [])
    return not wanted or _layer_number(module, layers_pattern) in wanted


def pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rank_pattern / alpha_pattern lookup: the first key that matches the end of `module` as a regex, else `default`."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def short_names(modules: Iterable[str]) -> tuple[str, ...]:
    """The last path segments of `modules`, sorted, each once ("q_proj", "v_proj")."""
    return tuple(sorted({module.rsplit(".", 1)[-1] for module in modules}))


def count_parameters(facts: ModelFacts, rank: int, targets: str | Sequence[str]) -> int:
    """Number of LoRA values of one rank on `targets` of a base: the sum of rank * (in + out) over the modules."""
    shapes = linear_shapes(facts)
    return sum(rank * (out_width + in_width) for module, (out_width, in_width) in shapes.items() if is_target(module, targets))


def _ends_with(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer_number(module: str, patterns: str | Sequence[str] | None) -> int | None:
    names = [patterns] if isinstance(patterns, str) else list(patterns or [r"[^.]*"])
    for name in names:
        match = re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module)
        if match:
            return int(match.group(1))
    return None
