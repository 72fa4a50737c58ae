"""python -m lad_engine.generate: answer a prompt on the terminal, as text, as JSON, or as a trace that can be played again."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

# Not `from .engine import Engine`: that imports torch, which --help, --replay and every refused argument do without.
import lad_engine

from .config import PRECISIONS, SamplingParams
from .contracts import GenerationResult, StepEvent
from .errors import ConfigError, RequestError
from .profiles import load_profile, profile_meanings, profile_params
from .terminal.arguments import as_flag, parse, sampling_settings
from .terminal.autoregressive import autoregressive_params
from .terminal.live import CanvasPainter, LiveView, printable
from .terminal.outcome import FAILURES, INTERRUPTED, refused
from .terminal.progress import LoadProgress, notes_on, quiet_libraries
from .terminal.replay import painter_of, played
from .terminal.requests import read_prompts
from .terminal.trace import TraceWriter, check_writable, read_trace, result_record
from .text.prompts import Prompt

if TYPE_CHECKING:
    from .engine import Engine

SEPARATOR = "---"

Load = Callable[..., "Engine"]


def main(argv: Sequence[str] | None = None, load: Load | None = None) -> int:
    """Run the command line and return its exit code: 2 with one sentence on stderr for anything the caller got wrong.

    `load` stands in for `Engine.load` (tests).
    """
    if hasattr(sys.stdout, "reconfigure"):
        # An answer may hold letters that a narrow locale cannot show.
        sys.stdout.reconfigure(errors="replace")
    stdout, stderr = Console(file=sys.stdout), Console(file=sys.stderr)
    try:
        return run(parse(argv), stdout, stderr, load)
    except FAILURES as error:
        return refused(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def run(arguments: argparse.Namespace, stdout: Console, stderr: Console, load: Load | None = None) -> int:
    """Do what the arguments ask, printing to the two consoles."""
    if arguments.list_profiles:
        list_profiles()
        return 0
    screen = Screen(stdout, stderr, arguments)
    if arguments.replay is not None:
        replay(arguments, screen)
        return 0
    has_report = arguments.drift_report or arguments.agreement_report
    prompts = [] if has_report and not _has_prompt(arguments) else read_prompts(arguments, _standard_input)
    settings = _checked_settings(arguments)
    continuing = autoregressive_params(arguments, settings) if arguments.autoregressive else None
    if arguments.trace is not None:
        check_writable(Path(arguments.trace))
    with nullcontext() if arguments.verbose else quiet_libraries(), notes_on(stderr):
        engine = _loaded(arguments, stderr, load)
        params = continuing or engine.sampling(arguments.profile, **settings)
        if arguments.verbose:
            _explain(engine, stderr)
            if prompts and not arguments.autoregressive:
                plan = engine.memory_plan(prompts[: arguments.batch_size], params)
                stderr.print(plan.sentence(), markup=False, highlight=False, soft_wrap=True)
        if arguments.drift_report:
            stderr.print(engine.drift().sentence(), markup=False, highlight=False, soft_wrap=True)
        if arguments.agreement_report:
            report = engine.agreement(prompts or None, params, batch_size=arguments.batch_size)
            stderr.print(report.sentence(), markup=False, highlight=False, soft_wrap=True)
            print(report.to_json(), file=stdout.file)
        elif prompts:
            answer(engine, prompts, params, screen)
    return 0


def answer(engine: Engine, prompts: list[Prompt], params: SamplingParams, screen: Screen) -> None:
    """Decode the prompts batch by batch, showing and recording what was asked for."""
    arguments = screen.arguments
    painter = CanvasPainter(engine.codec.piece, engine.mask_id, engine.eos_ids)
    with ExitStack() as stack:
        trace = None
        if arguments.trace is not None:
            trace = stack.enter_context(TraceWriter(arguments.trace, engine.codec.piece, engine.mask_id, engine.eos_ids))
        for start in range(0, len(prompts), arguments.batch_size):
            batch = prompts[start : start + arguments.batch_size]
            if trace is not None:
                for index, prompt in enumerate(batch, start):
                    trace.header(index, prompt, params)
            if arguments.autoregressive:
                items = engine.generate_autoregressive(batch, params)
            else:
                items = engine.stream(batch, params) if trace is not None or screen.shows_steps else engine.generate(batch, params)
            watched = _recorded(items, start, trace, engine.load_ms)
            screen.show(watched, painter, [prompt.text or prompt.infill or "" for prompt in batch], engine.load_ms, len(prompts) > 1)


def replay(arguments: argparse.Namespace, screen: Screen) -> None:
    """Play a trace: live on a terminal, else print the answers it ended with."""
    if _has_prompt(arguments):
        raise ConfigError("--replay plays what was recorded and a prompt is given too, expected one of them. Leave one out.")
    # Also what is no number at all.
    if not arguments.replay_speed > 0:
        raise ConfigError(f"replay-speed is {arguments.replay_speed:g}, expected more than 0.")
    sequences = read_trace(arguments.replay)
    titles = [str(sequence.header["prompt"].get("text", "")) for sequence in sequences]
    if screen.shows_steps:
        events = played(sequences, arguments.replay_speed) if screen.is_live else played(sequences, arguments.replay_speed, lambda _: None)
        screen.show_events(events, painter_of(sequences), titles)
    for sequence in sequences:
        if sequence.result is not None:
            screen.print_record(sequence.result, len(sequences) > 1)


def list_profiles() -> None:
    """Print every profile, what it does and the settings it makes."""
    for name, meaning in profile_meanings().items():
        settings = " ".join(as_flag(key, value) for key, value in load_profile(name).items())
        for line in (f"{name}: {meaning}", settings):
            print(textwrap.fill(line, 120, subsequent_indent="    ", initial_indent="" if line is not settings else "    "))


class Screen:
    """Where answers and steps go: a live canvas on a terminal, plain text in a pipe, JSON where asked."""

    def __init__(self, stdout: Console, stderr: Console, arguments: argparse.Namespace) -> None:
        self._stdout, self._stderr, self.arguments = stdout, stderr, arguments
        self.is_live = stdout.is_terminal and not (arguments.json or arguments.show_steps or arguments.autoregressive)
        self.shows_steps = self.is_live or arguments.show_steps
        self._printed = 0

    def show(
        self, items: Iterator[StepEvent | GenerationResult], painter: CanvasPainter, titles: list[str], load_ms: float, many: bool
    ) -> None:
        """Show the steps and results of one batch as they come."""
        results: list[GenerationResult] = []

        def events() -> Iterator[StepEvent]:
            for item in items:
                if isinstance(item, StepEvent):
                    yield item
                else:
                    results.append(item)

        self.show_events(events(), painter, titles)
        for result in results:
            self.print_record(result_record(result, load_ms), many)

    def show_events(self, events: Iterator[StepEvent], painter: CanvasPainter, titles: list[str]) -> None:
        """Draw the events live, or one line each, or only wait for their end."""
        if self.is_live:
            with LiveView(self._stdout, painter, titles) as view:
                for event in events:
                    view.update(event)
            return
        # Piped output holds the answer alone, so the steps go beside it.
        console = self._stdout if self._stdout.is_terminal and not self.arguments.json else self._stderr
        for event in events:
            if self.arguments.show_steps:
                console.print(painter.step_line(event, len(titles) > 1), soft_wrap=True, highlight=False)

    def print_record(self, record: dict[str, Any], many: bool) -> None:
        """Print one answer; `many` separates it from the one before."""
        out = self._stdout.file
        if self.arguments.json:
            print(json.dumps(record, ensure_ascii=False), file=out, flush=True)
            return
        if many and self._printed:
            print(SEPARATOR, file=out)
        self._printed += 1
        print(printable(record["text"]) if self._stdout.is_terminal else record["text"], file=out, flush=True)
        if self._stdout.is_terminal:
            self._stderr.print(_summary(record), style="dim", markup=False, highlight=False, soft_wrap=True)


def _recorded(
    items: Sequence[GenerationResult] | Iterator[StepEvent | GenerationResult], start: int, trace: TraceWriter | None, load_ms: float
) -> Iterator[StepEvent | GenerationResult]:
    """Pass the items of one batch on, numbered over all batches and written to the trace; results come in the order of the prompts."""
    finished = start
    for item in items:
        if isinstance(item, StepEvent):
            item = replace(item, index=start + item.index)
            if trace is not None:
                trace.step(item)
        else:
            if trace is not None:
                trace.result(finished, item, load_ms)
            finished += 1
        yield item


def _checked_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check what can be checked before the model is loaded."""
    settings = sampling_settings(arguments)
    if arguments.profile is not None:
        profile_params(arguments.profile, settings)
    if arguments.agreement_report and arguments.precision == "auto":
        raise ConfigError(f"agreement-report compares a precision with auto, expected --precision {', '.join(PRECISIONS[1:])}. Give one.")
    if arguments.batch_size < 1:
        raise ConfigError(f"batch-size is {arguments.batch_size}, expected at least 1.")
    return settings


def _loaded(arguments: argparse.Namespace, stderr: Console, load: Load | None) -> Engine:
    config = lad_engine.EngineConfig(
        device=arguments.device,
        dtype=arguments.dtype,
        precision=arguments.precision,
        merge=arguments.merge,
        any_base=arguments.any_base,
        batch_invariant=arguments.batch_invariant,
        ops=arguments.ops,
        threads=arguments.threads,
        driver=arguments.driver,
        mask_token=None if arguments.autoregressive else arguments.mask_token,
        reward_model=arguments.reward_model,
    )
    adapter = None if arguments.adapter == "none" or arguments.autoregressive else arguments.adapter
    with LoadProgress(stderr) as progress:
        return (load or lad_engine.Engine.load)(arguments.model, adapter=adapter, config=config, progress=progress.update)


def _explain(engine: Engine, stderr: Console) -> None:
    facts = engine.adapter_facts
    lines = [
        f"model    {engine.facts.name}  ({_precision(engine)} on {engine.config.device}, loaded in {engine.load_ms / 1e3:.2f} s)",
        f"adapter  {facts.name if facts else 'none'}",
        f"driver   {engine.driver}",
        engine.ops.table(),
    ]
    stderr.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _precision(engine: Engine) -> str:
    config = engine.config
    return config.dtype if config.precision == "auto" else f"{config.precision} in {config.dtype}"


def _summary(record: dict[str, Any]) -> str:
    timings, per_pass = record["timings"], record["tpf"] or 0.0
    seconds, tokens = timings["total_ms"] / 1e3, per_pass * record["nfe"]
    parts = [
        f"{record['steps']} steps{' (settled early)' if record['stopped_early'] else ''}",
        f"{tokens:.0f} tokens",
        f"{per_pass:.2f} a pass",
        f"{tokens / seconds if seconds > 0 else 0:.1f} tokens/s",
        f"{seconds:.2f} s",
        f"loaded in {timings['load_ms'] / 1e3:.2f} s",
    ]
    return " \u00b7 ".join(parts)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise RequestError("PROMPT is -, but standard input is closed. Give the prompt in quotes.")
    return sys.stdin.buffer.read()


def _has_prompt(arguments: argparse.Namespace) -> bool:
    return arguments.prompt is not None or arguments.prompts is not None or arguments.infill is not None


if __name__ == "__main__":
    sys.exit(main())
