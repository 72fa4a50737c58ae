"""Choose how each op is computed, once: the engine gets a frozen set of plain functions and a table that says why."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OpsError
from .kernels.op import Op
from .kernels.tile_table import TileTable, by_model, by_shape, table_for

OP_NAMES = (
    "attention",
    "add_rmsnorm",
    "decode_attention",
    "few_row_linear",
    "rotary",
    "swiglu",
    "lora_linear",
    "packed_attention",
    "gate_up",
    "modulated_norm",
    "quantise_rows",
    "rmsnorm_quantise",
    "swiglu_quantise",
    "quantised_linear",
    "weight_only_linear",
    "choose_token",
    "lm_head",
    "renoise",
    "gaussian_noise",
    "soft_embedding",
    "update",
    "structured_noise",
    "random",
)
BACKENDS = ("reference", "cpu", "sdpa", "library", "cublas", "triton", "cuda")
# Tried in this order by "auto", the reference last; a device that is not listed gets the reference.
PREFERRED = {"cpu": ("cpu", "sdpa", "library"), "cuda": ("cuda", "triton", "cublas", "sdpa", "library")}
# A library call stays first wherever no committed result shows our kernel faster.
PREFERRED_FOR = {
    ("attention", "cuda"): ("sdpa", "cuda", "triton"),
    ("lm_head", "cuda"): ("cublas", "triton"),
    ("few_row_linear", "cuda"): ("cublas", "triton"),
    ("lora_linear", "cuda"): ("cublas", "triton"),
    ("packed_attention", "cuda"): ("sdpa", "triton"),
    ("gate_up", "cuda"): ("cublas", "triton"),
}
# What a table does not know, by design and unmeasured: with lengths, as every captured step has them, the library needs a mask and loses
# its fast kernels, while ours skips the keys beyond them. Without tensor cores, and for the widest heads, the library stays first.
PREFERRED_BY_MODEL: dict[tuple[str, str], tuple[str, Callable[[Mapping[str, Any]], bool], str]] = {
    ("packed_attention", "cuda"): (
        "triton",
        lambda model: model["lengths"] == "given" and model["dtype"] != "float32" and model["K"] <= 128,
        "where lengths are given (not measured)",
    ),
}
# In batch_invariant mode: backends whose tiles and sums of a row depend on nothing else in the batch (`Op.invariant`).
INVARIANT_FOR = {(name, "cuda"): ("triton",) for name in ("lora_linear", "packed_attention", "gate_up", "lm_head", "weight_only_linear")}
# What follows the batch in that mode too: a model that is to be invariant calls these for one sequence at a time, or not at all.
FOLLOWS_BATCH = ("attention", "decode_attention", "few_row_linear", "quantised_linear")
ENVIRONMENT_VARIABLE = "LAD_OPS"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpSet:
    """The functions a model and a denoiser compute with; their contracts are those of `kernels/<op>/reference.py`.

    chosen: backend of each op. why: the reason, one phrase per op. Keys are the folder names of `kernels/`; `uniform` is op `random`.
    """

    attention: Callable[..., Any]
    add_rmsnorm: Callable[..., Any]
    decode_attention: Callable[..., Any]
    few_row_linear: Callable[..., Any]
    rotary: Callable[..., Any]
    swiglu: Callable[..., Any]
    lora_linear: Callable[..., Any]
    packed_attention: Callable[..., Any]
    gate_up: Callable[..., Any]
    modulated_norm: Callable[..., Any]
    quantise_rows: Callable[..., Any]
    rmsnorm_quantise: Callable[..., Any]
    swiglu_quantise: Callable[..., Any]
    quantised_linear: Callable[..., Any]
    weight_only_linear: Callable[..., Any]
    choose_token: Callable[..., Any]
    lm_head: Callable[..., Any]
    renoise: Callable[..., Any]
    gaussian_noise: Callable[..., Any]
    soft_embedding: Callable[..., Any]
    update: Callable[..., Any]
    structured_noise: Callable[..., Any]
    uniform: Callable[..., Any]
    chosen: Mapping[str, str]
    why: Mapping[str, str]

    def table(self) -> str:
        """One line per op: name, backend, reason (printed with --verbose)."""
        width = max(map(len, self.chosen))
        return "\n".join(f"{name:<{width}}  {backend:<9}  {self.why[name]}" for name, backend in self.chosen.items())


def load_op(name: str) -> Op:
    """Return the record of `kernels/<name>`; its backends are not imported yet."""
    return importlib.import_module(f".kernels.{name}", __package__).OP


def select_ops(
    choice: str = "auto", device: str = "cpu", overrides: Mapping[str, str] | None = None, batch_invariant: bool = False
) -> OpSet:
    """Choose a backend for every op.

    Args:
        choice: "auto" (the fastest that runs here), a backend for all ops, or a list such as "cpu,attention=reference". A backend for
            all ops leaves the reference where an op has no such file. "auto" is replaced by the variable LAD_OPS where that is set.
        device: a torch device name; of a GPU the table of measured choices is read too, where there is one for its name.
        overrides: op name to backend, stronger than `choice`.
        batch_invariant: where "auto" chooses, prefer a backend of fixed tiles (INVARIANT_FOR) to the fastest.
    Raises:
        OpsError: an unknown name, or a backend asked for by name that cannot run here. Only "auto" steps down, and logs so once.
    """
    if choice == "auto":
        choice = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    base, by_name = _parse(choice)
    if base not in ("auto", "reference") and not any(base in load_op(name).backends for name in OP_NAMES):
        raise OpsError(
            f"ops: no op has a {base} backend, expected one of {', '.join(_backends_in_use())}. Leave --ops out for the fastest."
        )
    for name, backend in (overrides or {}).items():
        by_name[_known(name, OP_NAMES, "op")] = _known(backend, ("auto", *BACKENDS), "backend")
    device_type = str(device).partition(":")[0]
    table = _table_for(device) if "auto" in (base, *by_name.values()) and not batch_invariant else None
    functions, chosen, why, stepped_down = {}, {}, {}, {}
    for name in OP_NAMES:
        op = load_op(name)
        wanted = by_name.get(name, base)
        if wanted == "auto":
            backend, function, reason = _best(op, device_type, stepped_down, batch_invariant)
            if not batch_invariant:
                backend, function, reason = _by_model(op, device_type, backend, function, reason)
            if table is not None and name in table.choices:
                rest = reason if backend == "by shape" else backend
                backend, function, reason = "by shape", _by_shape(op, table, function), f"measured on {table.gpu}, else {rest}"
        elif wanted not in ("reference", *op.backends) and name not in by_name:
            backend, function, reason = "reference", op.reference, f"there is no {wanted}_kernel.py"
        else:
            backend, function, reason = wanted, _by_name(op, wanted, device_type), "asked for"
            if batch_invariant and wanted in INVARIANT_FOR.get((name, device_type), ()):
                function = op.invariant(wanted)
        functions[op.function], chosen[name], why[name] = function, backend, reason
    for reason, names in stepped_down.items():
        _warn_once(f"{', '.join(names)} run in plain PyTorch: {reason}")
    return OpSet(**functions, chosen=chosen, why=why)


def _backends_in_use() -> tuple[str, ...]:
    used = {backend for name in OP_NAMES for backend in load_op(name).backends}
    return ("auto", *(backend for backend in BACKENDS if backend == "reference" or backend in used))


def _best(op: Op, device_type: str, stepped_down: dict[str, list[str]], batch_invariant: bool) -> tuple[str, Callable[..., Any], str]:
    reason = "the only one" if not op.backends else f"no other runs on {device_type}"
    fixed = INVARIANT_FOR.get((op.name, device_type)) if batch_invariant else None
    for backend in fixed or PREFERRED_FOR.get((op.name, device_type), PREFERRED.get(device_type, ())):
        if backend not in op.backends:
            continue
        try:
            if fixed:
                return backend, op.invariant(backend), "the same tiles whatever the batch"
            return backend, op.implementation(backend), f"best on {device_type}"
        except ImportError as error:
            reason = _cannot_import(backend, error)
            stepped_down.setdefault(reason, []).append(op.name)
    return "reference", op.reference, reason


def _by_model(op: Op, device_type: str, backend: str, function: Callable[..., Any], reason: str) -> tuple[str, Callable[..., Any], str]:
    """Return what "auto" computes an op with where the default depends on more than its name."""
    wanted, is_wanted, where = PREFERRED_BY_MODEL.get((op.name, device_type), (backend, None, ""))
    if is_wanted is None or wanted == backend:
        return backend, function, reason
    try:
        return "by shape", by_model(op, is_wanted, op.implementation(wanted), function), f"{wanted} {where}, else {backend}"
    except ImportError:
        return backend, function, reason


def rows_stand_alone(ops: OpSet, device: str) -> bool:
    """Say whether a padded batch gives every row the bits it has alone: each op of INVARIANT_FOR is computed so on this device."""
    wanted = {name: backends for (name, device_type), backends in INVARIANT_FOR.items() if device_type == str(device).partition(":")[0]}
    return bool(wanted) and all(ops.chosen[name] in backends for name, backends in wanted.items())


def _table_for(device: str) -> TileTable | None:
    try:
        return table_for(str(device))
    except ValueError as error:
        raise OpsError(f"ops: {error}") from error


def _by_shape(op: Op, table: TileTable, fallback: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return by_shape(op, table, fallback)
    except (ValueError, ImportError) as error:
        raise OpsError(
            f"ops: the table of {table.gpu} cannot be used ({error}) Name a backend, such as --ops {op.name}=reference."
        ) from error


def _by_name(op: Op, backend: str, device_type: str) -> Callable[..., Any]:
    where = f"{op.name}={backend}"
    if backend == "reference":
        return op.reference
    if backend not in op.backends:
        raise OpsError(f"{where}: the backends of {op.name} are {', '.join(('reference', *op.backends))}. Choose one of these.")
    # Triton's own switch: its interpreter runs on the CPU, for tests, and only where the backend is asked for by name.
    is_interpreted = backend in ("triton", "cublas") and device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend not in PREFERRED.get(device_type, ()) and not is_interpreted:
        runs_on = ", ".join(device for device, backends in PREFERRED.items() if backend in backends)
        raise OpsError(f"{where}: device is {device_type}, expected {runs_on}. Use --ops {op.name}=reference.")
    try:
        return op.implementation(backend)
    except ImportError as error:
        raise OpsError(f"{where}: {_cannot_import(backend, error)} Or use --ops {op.name}=reference.") from error


def _cannot_import(backend: str, error: ImportError) -> str:
    if backend == "cpu":
        return f"the C++ extension is not built ({error}). Install a C++ compiler and reinstall lad-engine without LAD_SKIP_EXT."
    return f"the {backend} backend cannot be imported ({error})."


def _parse(choice: str) -> tuple[str, dict[str, str]]:
    base, by_name = "auto", {}
    for item in filter(None, (part.strip() for part in choice.split(","))):
        name, separator, backend = (part.strip() for part in item.partition("="))
        if separator:
            by_name[_known(name, OP_NAMES, "op")] = _known(backend, ("auto", *BACKENDS), "backend")
        else:
            base = _known(name, ("auto", *BACKENDS), "backend")
    return base, by_name


def _known(name: str, accepted: tuple[str, ...], kind: str) -> str:
    if name not in accepted:
        raise OpsError(f"ops: {kind} is {name!r}, expected one of {', '.join(accepted)}. Write for example --ops attention=reference.")
    return name


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
