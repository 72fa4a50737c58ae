"""Everything one training run is told, from a TOML file and flags; unknown names are refused."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..config import MOST_THREADS
from ..errors import ConfigError
from ..families import DEFAULT_PROFILES, READS

CORRUPTIONS = ("paper", "code", "mask_only", "mixed")
LOSSES = ("all", "answer", "corrupted", "mask_only")
TRAIN_DTYPES = ("auto", "float32", "bfloat16")
TOO_LONG = ("drop", "truncate")
OBJECTIVES = ("lad", "masked", "simplex", "latent_ode")
FLOW_TIMES = ("uniform", "cosmap")
SPANS = ("answer", "ul2")
KIND_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", tuple: "a list of texts"}
# Settings that only some objectives read.
READ_BY = {
    **dict.fromkeys(("corruption", "whole_mask_share", "block_share", "block_length", "loss", "kept_weight"), ("lad",)),
    **dict.fromkeys(("flow_times", "flow_classes", "class_dropout"), ("latent_ode",)),
    **dict.fromkeys(("teacher_share", "align_weight"), ("lad", "masked")),
    **dict.fromkeys(("init_adapter", "targets", "rslora", "dropout", "train_norms"), ("lad", "masked", "simplex")),
    **dict.fromkeys(("predicts_next_token", "eos_pad_weight", "grad_checkpointing"), ("lad", "masked", "simplex")),
    "anneal_steps": ("masked",),
    "spans": ("simplex",),
}
# Of objective "lad": settings that only some losses read.
READ_BY_LOSS = {"kept_weight": ("corrupted",), "eos_pad_weight": ("answer", "corrupted")}
MOST = 2**63 - 1
BELOW_ONE = ("dropout", "beta1", "beta2", "label_smoothing")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    What:
        output: folder of the run (checkpoints, metrics, adapter). name: the adapter's name. base: model folder, hub id or GGUF
        (None: the embedded default). init_adapter: an adapter to continue from (rank, alpha, targets, mask_token and
        predicts_next_token must be its own).
    Data:
        data: files or datasets, each "path", "path=weight" or "hf:id[:split][=weight]" (weight: copies of each example per epoch).
        max_length: window; max_chars: instruction + input + output at most; too_long: what happens to examples beyond the window.
        max_prompt: prompts beyond this many tokens are dropped (None: the window decides). system_prompt: None is the chat template's own;
            the adapter names it as its default, and rows that have a "system" text of their own use that.
        val_share: part of the examples kept for validation, chosen by hash; val_examples: how many of them are used.
        tail_power: the window is filled to T = least + u^power (max_length - least) with EOS, u in (0, 1) per batch; 0 never adds.
        eos_pads: EOS positions after the closing one that a row has at least.
    Noise: corruption: see kernels/structured_noise. whole_mask_share: part of the examples whose whole answer is masked instead, as
        a decode begins ("lad" only). block_share: part of the examples seen as a decode in blocks of block_length sees them: clean before
        a block drawn at random, something masked in it, all after it, the loss inside it ("lad" only). mask_token: piece that is one id of
        the tokenizer.
    Loss:
        objective: the decoding family that is trained for: "lad", or "masked" (DiffuLLaMA: corruption mask_only, 1/t, see
        objectives/masked.py; it reads loss and kept_weight not at all).
        "simplex" is TESS 2's (objectives/simplex.py); spans: it noises the "answer", or as "ul2" says spans of the whole text.
        "latent_ode" is L2D's (objectives/latent_ode.py): a flow path of `rank` beside the frozen base; flow_times: how times are drawn;
        flow_classes: labels of its guidance table, the class of an example being the place of its source in data; class_dropout.
        anneal_steps: updates over which attention grows from causal to bidirectional ("masked" only, 0 for none).
        loss: "all" every position, "answer" answer and EOS padding, "corrupted" changed answer positions, "mask_only" masked ones by 1/t.
        teacher_share: part of a target that is what the frozen base expects there after the clean text, instead of the token itself; up
        to the closing EOS, where all that follows is masked. align_weight: weight of the distance between what the layers read on the
        prompt, and on an answer that only masks follow, and what the base reads there (both: "lad" and "masked" only; training/teacher.py).
        kept_weight: weight of unchanged answer tokens with "corrupted". eos_pad_weight: of EOS positions after the first.
    Adapter: rank, alpha (None: rank), targets (last names of linear layers), dropout, rslora, train_norms, predicts_next_token.
    Optimiser: steps updates of grad_accumulation x batch_size rows (per process); AdamW, warm-up then cosine to min_lr_share.
    """

    output: str = "run"
    name: str = "adapter"
    base: str | None = None
    init_adapter: str | None = None
    data: tuple[str, ...] = ()
    max_length: int = 128
    max_prompt: int | None = None
    max_chars: int = 896
    too_long: str = "drop"
    system_prompt: str | None = None
    val_share: float = 0.01
    val_examples: int = 64
    tail_power: float = 3.0
    eos_pads: int = 2
    objective: str = "lad"
    flow_times: str = "uniform"
    flow_classes: int = 0
    class_dropout: float = 0.2
    spans: str = "answer"
    anneal_steps: int = 0
    corruption: str = "paper"
    whole_mask_share: float = 0.0
    block_share: float = 0.0
    block_length: int = 8
    mask_token: str = "MASK"
    loss: str = "corrupted"
    label_smoothing: float = 0.0
    teacher_share: float = 0.0
    align_weight: float = 0.0
    kept_weight: float = 0.0
    eos_pad_weight: float = 0.1
    rank: int = 128
    alpha: float | None = None
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    rslora: bool = False
    train_norms: bool = False
    predicts_next_token: bool = False
    profile: str = "paper"
    steps: int = 1000
    batch_size: int = 16
    grad_accumulation: int = 1
    grad_checkpointing: bool = False
    learning_rate: float = 1e-3
    min_lr_share: float = 0.05
    warmup_steps: int = 50
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 0.5
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    log_every: int = 10
    val_every: int = 250
    save_every: int = 250
    keep_last: int = 2
    plot: bool = True

    def __post_init__(self) -> None:
        for name in ("data", "targets"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.objective != "lad" and self.profile == TrainConfig.profile:
            # LAD's profile means nothing to another family's denoiser.
            object.__setattr__(self, "profile", DEFAULT_PROFILES.get(self.objective, self.objective))
        _check(self)

    @classmethod
    def load(cls, path: str | Path | None, flags: Mapping[str, Any]) -> TrainConfig:
        """Read a TOML file (or none), then lay the given flags over it.

        Raises:
            ConfigError: the file is missing or not TOML, or a name or value is not accepted.
        """
        return cls.from_mapping({**({} if path is None else _read_toml(Path(path))), **flags})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from names; an unknown name is an error that lists the close ones."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3)
                hint = f"did you mean {' or '.join(close)}?" if close else f"accepted are {', '.join(sorted(known))}."
                raise ConfigError(f"config: {name} is not a training setting; {hint}")
            _check_type(name, value)
        return cls(**values)

    def check_profile(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError where `settings`, those of the profile, are none that decoding after this objective reads."""
        unread = settings.keys() - set(READS[self.objective])
        if unread:
            raise ConfigError(
                f"config: profile {self.profile} sets {min(unread)}, which decoding after objective {self.objective} does not read. "
                "Choose a profile of its family."
            )

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError as error:
        raise ConfigError("config: a TOML file needs Python 3.11 or newer. Give the settings as flags.") from error
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"config: {path} cannot be read ({error.strerror}). Give a TOML file.") from error
    except ValueError as error:
        raise ConfigError(f"config: {path} is not TOML ({error}). Correct that line.") from error


def field_kinds() -> dict[str, tuple[type, bool]]:
    """Return name -> (bool, int, float, str or tuple; may be None) of every setting, for the command line."""
    kinds: dict[str, tuple[type, bool]] = {}
    for name, hint in get_type_hints(TrainConfig).items():
        options = [option for option in get_args(hint) if option is not type(None)] if type(None) in get_args(hint) else [hint]
        kinds[name] = (get_origin(options[0]) or options[0], len(get_args(hint)) > 1 and type(None) in get_args(hint))
    return kinds


def _check_type(name: str, value: Any) -> None:
    kind, may_be_none = field_kinds()[name]
    if value is None and may_be_none:
        return
    accepted = {float: (int, float), tuple: (list, tuple, str)}.get(kind, (kind,))
    holds_texts = kind is not tuple or not isinstance(value, (list, tuple)) or all(isinstance(part, str) for part in value)
    if isinstance(value, int) and abs(value) > MOST:
        raise ConfigError(f"config: {name} is {value}, expected at most {MOST}.")
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool) or not holds_texts:
        raise ConfigError(f"config: {name} is {value!r}, expected {KIND_NAMES[kind]}.")


def _check(c: TrainConfig) -> None:
    listed = (("objective", OBJECTIVES), ("flow_times", FLOW_TIMES), ("spans", SPANS), ("corruption", CORRUPTIONS), ("loss", LOSSES))
    for name, choices in (*listed, ("dtype", TRAIN_DTYPES), ("too_long", TOO_LONG)):
        if getattr(c, name) not in choices:
            raise ConfigError(f"config: {name} is {getattr(c, name)!r}, expected one of {', '.join(choices)}.")
    counts = ("steps", "batch_size", "grad_accumulation", "rank", "log_every", "val_every", "save_every", "keep_last", "max_chars")
    for name in (*counts, "block_length"):
        if getattr(c, name) < 1:
            raise ConfigError(f"config: {name} is {getattr(c, name)}, expected 1 or more.")
    if c.max_length < 8:
        raise ConfigError(f"config: max_length is {c.max_length}, expected 8 or more.")
    for name in (
        "val_share",
        "whole_mask_share",
        "block_share",
        "label_smoothing",
        "teacher_share",
        "dropout",
        "min_lr_share",
        "kept_weight",
        "eos_pad_weight",
        "class_dropout",
        "beta1",
        "beta2",
    ):
        value = getattr(c, name)
        if not (math.isfinite(value) and 0.0 <= value <= 1.0) or (name in BELOW_ONE and value == 1.0):
            raise ConfigError(f"config: {name} is {value!r}, expected a number from 0 to 1.")
    for name in ("learning_rate", "clip"):
        if not (math.isfinite(getattr(c, name)) and getattr(c, name) > 0):
            raise ConfigError(f"config: {name} is {getattr(c, name)!r}, expected a number above 0.")
    for name, most in (("seed", MOST), ("threads", MOST_THREADS)):
        if getattr(c, name) is not None and getattr(c, name) > most:
            raise ConfigError(f"config: {name} is {getattr(c, name)}, expected at most {most}.")
    if c.threads is not None and c.threads < 1:
        raise ConfigError(f"config: threads is {c.threads}, expected 1 or more.")
    if c.alpha is not None and not (math.isfinite(c.alpha) and c.alpha > 0):
        raise ConfigError(f"config: alpha is {c.alpha!r}, expected a number above 0.")
    for name in (
        "weight_decay",
        "align_weight",
        "tail_power",
        "eos_pads",
        "warmup_steps",
        "val_examples",
        "seed",
        "anneal_steps",
        "flow_classes",
    ):
        if not (math.isfinite(getattr(c, name)) and getattr(c, name) >= 0):
            raise ConfigError(f"config: {name} is {getattr(c, name)!r}, expected 0 or more.")
    if not c.targets:
        raise ConfigError("config: targets is empty, expected names such as q_proj and v_proj.")
    if c.loss == "mask_only" and c.corruption != "mask_only":
        raise ConfigError(f'config: loss "mask_only" weighs by the mask level, expected corruption "mask_only", got "{c.corruption}".')
    if c.block_share and c.loss == "mask_only":
        raise ConfigError(f'config: block_share is {c.block_share} with loss "mask_only", which counts whole answers. Choose another loss.')
    for name, readers in READ_BY.items():
        if c.objective not in readers and getattr(c, name) != getattr(TrainConfig, name):
            raise ConfigError(f"config: {name} is {getattr(c, name)!r}, which objective {c.objective} does not read. Leave it out.")
    for name, losses in READ_BY_LOSS.items():
        if c.objective == "lad" and c.loss not in losses and getattr(c, name) != getattr(TrainConfig, name):
            raise ConfigError(f'config: {name} is {getattr(c, name)!r}, which loss "{c.loss}" does not read. Leave it out.')
    if c.flow_classes and c.flow_classes != len(c.data):
        raise ConfigError(f"config: flow_classes is {c.flow_classes} for {len(c.data)} data sources, expected one class per source, or 0.")
    for name in ("teacher_share", "align_weight"):
        if getattr(c, name) and c.train_norms:
            raise ConfigError(f"config: {name} is set with train_norms, which changes the base that teaches. Leave one of them out.")
