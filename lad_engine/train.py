"""`python -m lad_engine.train`: train a LoRA adapter that turns an autoregressive checkpoint into a denoiser."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .adapters.reader import read_adapter
from .adapters.whole_files import whole_file
from .errors import ConfigError, TrainingError
from .model.backbones import backbone_of
from .model.language_model import LanguageModel
from .model.weights import Checkpoint, open_checkpoint
from .ops import select_ops
from .placement import native_dtype, resolve_device
from .profiles import load_profile
from .terminal.arguments import SentenceParser
from .terminal.outcome import FAILURES, INTERRUPTED, refused
from .terminal.progress import LoadProgress
from .text.codec import load_tokenizer
from .training.checkpoint import list_checkpoints
from .training.config import TrainConfig, field_kinds
from .training.data import Limits, load_examples, parse_source
from .training.export import adapter_facts, export_adapter
from .training.gradients import differentiable
from .training.latent import export_model, open_flow_path
from .training.lora import Trainable, attach_trainable
from .training.metrics import MetricsFile, plot_losses
from .training.objectives.simplex import open_time_vector
from .training.processes import Processes, join_processes
from .training.trainer import Trainer

NO_TOKEN = -1
# The other backends have no backward pass; mean embeddings and the noise, which is bit for bit the reference's, need none.
OPS = "reference,soft_embedding=auto,structured_noise=auto"
TOO_LITTLE_MEMORY = (
    "memory: the device has too little for this run, expected room for its updates. Lower batch_size (and raise grad_accumulation), "
    "max_length or rank, or turn grad_checkpointing on; --resume goes on from the last checkpoint."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when finished or stopped on request, 2 after a mistake of the caller."""
    try:
        options = _parse(arguments)
        config = _load_config(options)
        return _run(config, options)
    except FAILURES as error:
        return refused(error)
    except RuntimeError as error:
        # CUDA raises a class of its own, the CPU's allocator only says so.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        return refused(TrainingError(TOO_LITTLE_MEMORY))
    except KeyboardInterrupt:
        print("Stopped before training began; nothing was written.", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = SentenceParser(
        prog="python -m lad_engine.train",
        description="Train a LoRA adapter, or L2D's flow path, on an autoregressive checkpoint. Settings of the file are also flags.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of --output (with its settings)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    defaults = TrainConfig()
    for name, (kind, _) in field_kinds().items():
        flag, shown = f"--{name.replace('_', '-')}", f"default: {_shown(getattr(defaults, name))}"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown)
        elif kind is tuple:
            parser.add_argument(flag, nargs="+", default=argparse.SUPPRESS, metavar="TEXT", help=shown)
        else:
            parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=shown)
    return parser.parse_args(arguments)


def _shown(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


def _load_config(options: argparse.Namespace) -> TrainConfig:
    flags = {name: value for name, value in vars(options).items() if name in field_kinds()}
    if options.resume and options.config is None:
        run = Path(flags.get("output", TrainConfig().output))
        try:
            stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"resume: {run} holds no run ({error}). Give --output of an earlier run, or leave out --resume.") from error
        if not isinstance(stored, dict):
            raise TrainingError(
                f"resume: {run / 'config.json'} is a JSON {type(stored).__name__}, expected the settings of a run. Start anew."
            )
        return TrainConfig.from_mapping({**stored, **flags})
    return TrainConfig.load(options.config, flags)


def _run(config: TrainConfig, options: argparse.Namespace) -> int:
    if not config.data:
        raise ConfigError("config: data is empty, expected at least one JSON Lines file. Give --data FILE.")
    config.check_profile(load_profile(config.profile))
    run = Path(config.output)
    if not options.resume:
        _check_new(run, ("model",) if config.objective == "latent_ode" else ("adapter.safetensors", "peft"))
    sources = [parse_source(text) for text in config.data]
    for source in sources:
        if not source.where.startswith("hf:") and not Path(source.where).is_file():
            state = "is no file" if Path(source.where).exists() else "does not exist"
            raise TrainingError(f"data: {source.where} {state}. Give a JSON Lines file, or hf:ID for a dataset of the hub.")
    processes = join_processes(uses_cpu=config.device == "cpu" or not torch.cuda.is_available())
    say = _sayer(options.quiet or not processes.is_main)
    device, dtype = _placement(config, processes)
    if config.threads:
        torch.set_num_threads(config.threads)
    trainer = _build(config, device, dtype, processes, say, is_shown=not options.quiet)
    if options.resume:
        say(trainer.resume())
    _write_config(run, config, processes)
    with _stop_on_signals() as stopped:
        trainer.should_stop = lambda: bool(stopped)
        is_finished = trainer.train()
        if processes.is_main and config.plot:
            plot_losses(MetricsFile(run / "metrics.jsonl", trainer.counters.step).read(), run / "loss.png", config.name)
    if is_finished:
        made = f"model is {run / 'model'}" if config.objective == "latent_ode" else f"adapter is {run / 'adapter.safetensors'}"
        say(f"Finished {trainer.counters.step} updates; the {made}.")
    else:
        say(f"Stopped at update {trainer.counters.step} after writing a checkpoint; continue with --resume --output {run}.")
    return 0


def _check_new(run: Path, exports: Sequence[str]) -> None:
    """Refuse a folder in which a new run would write over something: an earlier run's work, or the config.json of a model."""
    if list_checkpoints(run):
        raise TrainingError(f"output: {run} holds the checkpoints of an earlier run. Continue it with --resume or choose another --output.")
    for name in exports:
        if (run / name).exists():
            raise TrainingError(f"output: {run} holds {name} already, which this run would write. Choose another --output.")
    try:
        stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return
    except ValueError:
        stored = None
    # A run that ended before its first checkpoint may begin again.
    if not isinstance(stored, dict) or not stored.keys() >= {"output", "save_every"}:
        raise TrainingError(f"output: {run} holds a config.json that is no run's, which would be lost. Choose another --output.")


def _build(
    config: TrainConfig, device: torch.device, dtype: torch.dtype, processes: Processes, say: Callable[[str], None], *, is_shown: bool
) -> Trainer:
    """Load base, tokenizer and data, attach the trainable pairs, and return the trainer."""
    with LoadProgress(Console(stderr=True)) as progress:
        checkpoint = open_checkpoint(config.base, progress=progress.update)
    most = checkpoint.facts.max_positions
    if config.max_length > most:
        raise ConfigError(f"config: max_length is {config.max_length}, expected at most {most} (max_position_embeddings of the base).")
    codec = load_tokenizer(checkpoint.folder)
    if not codec.has_chat_template:
        raise TrainingError(
            f"base: {checkpoint.facts.name} has no chat template, expected one to lay its prompts out with. Give an instruct model, or add "
            "chat_template to its tokenizer_config.json."
        )
    is_latent = config.objective == "latent_ode"
    # L2D hides nothing, so its base needs no token to stand for it.
    mask_id = NO_TOKEN if is_latent else codec.piece_id(config.mask_token)
    eos_id = codec.eos_id if codec.eos_id is not None else next(iter(checkpoint.facts.eos_ids), None)
    if eos_id is None:
        raise TrainingError(f"base: {checkpoint.facts.name} names no EOS token, expected one to end answers. Set it in its config.json.")
    limits = Limits(config.max_length, config.max_prompt, config.max_chars, config.too_long, config.system_prompt)
    train, validation, counts = load_examples(map(parse_source, config.data), codec, limits, config.val_share)
    dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count and reason != "kept")
    say(f"{len(train)} examples to train on, {len(validation)} for validation" + (f"; dropped: {dropped}" if dropped else "") + ".")
    largest = max(mask_id, eos_id, *(int(part.tokens.max()) for part in (train, validation) if len(part)))
    if largest >= checkpoint.facts.vocab_size:
        raise TrainingError(
            f"base: id {largest} of its tokenizer ({codec.piece(largest)!r}) is in use, expected ids below its vocabulary of "
            f"{checkpoint.facts.vocab_size}. Use the base's own tokenizer, or a base whose embeddings were resized."
        )
    ops = differentiable(select_ops(OPS, device=device.type))
    build = open_flow_path if is_latent else _with_pairs
    transformer, trainable = build(checkpoint, config, ops, dtype, device)
    transformer.train(config.dropout > 0)
    size = sum(parameter.numel() for parameter in trainable.named().values())
    say(f"{size / 1e6:.2f} M trainable parameters on {device}, {str(dtype).removeprefix('torch.')}.")

    def export(step: int) -> None:
        if is_latent:
            export_model(Path(config.output) / "model", checkpoint, transformer)
            return
        export_adapter(Path(config.output), trainable, adapter_facts(config, checkpoint.facts, mask_id, eos_id, step))

    return Trainer(
        LanguageModel(transformer), ops, trainable, train, validation, config,
        mask_id=mask_id, eos_id=eos_id, device=device, processes=processes, export=export, is_shown=is_shown,
    )  # fmt: skip


def _with_pairs(checkpoint: Checkpoint, config: TrainConfig, ops: Any, dtype: torch.dtype, device: torch.device) -> tuple[Any, Trainable]:
    """Load the base and attach the pairs that are trained."""
    transformer = backbone_of(checkpoint.facts).from_tensors(checkpoint.facts, checkpoint.tensors(), ops, dtype, device)
    transformer.head.predicts_next_token = config.predicts_next_token
    # A run that goes on takes its values from its checkpoint, wherever the adapter it began with is by now.
    begins = not list_checkpoints(Path(config.output))
    start = read_adapter(config.init_adapter) if config.init_adapter and begins else None
    # A PEFT folder from elsewhere records neither.
    for name in ("mask_token", "predicts_next_token") if start is not None and start.facts.mask_id != NO_TOKEN else ():
        own, given = getattr(start.facts, name), getattr(config, name)
        if own != given:
            raise TrainingError(f"init_adapter: {name} of {config.init_adapter} is {own!r}, expected {given!r} as set. Set it so.")
    trainable = attach_trainable(
        transformer,
        config.targets,
        config.rank,
        float(config.rank if config.alpha is None else config.alpha),
        uses_rslora=config.rslora,
        dropout=config.dropout,
        train_norms=config.train_norms,
        seed=config.seed,
    )
    if config.objective == "simplex":
        trainable.norms["timestep_embed"] = open_time_vector(transformer)
    if start is not None:
        trainable.start_from(start.weights, start.norms, str(config.init_adapter))
    return transformer, trainable


def _placement(config: TrainConfig, processes: Processes) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype; "auto" is CUDA where there is one, and bfloat16 where the hardware computes in it."""
    device = resolve_device(config.device)
    if processes.device is not None and device.type == processes.device.type:
        device = processes.device
    return device, native_dtype(device) if config.dtype == "auto" else getattr(torch, config.dtype)


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Yield a list that fills when SIGTERM or SIGINT arrives; the loop then ends after the current update."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda which, _: received.append(which)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_config(run: Path, config: TrainConfig, processes: Processes) -> None:
    if not processes.is_main:
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        with whole_file(run / "config.json") as temporary:
            temporary.write_text(json.dumps(config.to_mapping(), indent=1), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"output: {run} cannot be written ({error.strerror}). Choose another --output.") from error


def _sayer(is_quiet: bool) -> Callable[[str], None]:
    return lambda text: None if is_quiet else print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
