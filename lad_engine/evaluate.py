"""python -m lad_engine.evaluate: tasks, baselines and open answers under named conditions; or an adapter's decode profile; or samples."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .config import EngineConfig
from .engine import Engine
from .errors import ConfigError
from .evaluation.conditions import ADAPTER_SETTINGS, GREEDY, SAMPLED, TASK_SETTINGS, Condition
from .evaluation.judge import Judge
from .evaluation.ledger import Ledger
from .evaluation.measure import Work, generation_work, likelihood_work, run
from .evaluation.open_answers import TASK, open_conditions, open_work
from .evaluation.profile_search import choose, place_of_profile, save, search
from .evaluation.progress import Countdown
from .evaluation.report import write_report, write_trials
from .evaluation.samples import write_samples
from .evaluation.sandbox import check_allowed
from .evaluation.sets import Example, load_set, read_questions, subset
from .evaluation.tasks import TASKS
from .profiles import load_profile
from .terminal.arguments import sampling_settings
from .terminal.evaluation import parse_evaluation
from .terminal.outcome import FAILURES, INTERRUPTED, refused
from .terminal.progress import LoadProgress, notes_on, quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when finished, 2 with one sentence after a mistake of the caller, 130 when interrupted (run it again to go on)."""
    stderr = Console(file=sys.stderr)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parse_evaluation(words)
        arguments.command = shown_command(words)
        with quiet_libraries(), notes_on(stderr):
            run_evaluation(arguments, stderr)
        return 0
    except FAILURES as error:
        return refused(error)
    except KeyboardInterrupt:
        left = "nothing was written" if "--samples" in words else "what is finished is kept, the same command goes on from there"
        print(f"\nInterrupted; {left}.", file=sys.stderr)
        return INTERRUPTED


def shown_command(words: Sequence[str]) -> str:
    """Return the command line as results record it: of an absolute path only the last part, which is what means something elsewhere."""
    return shlex.join(["python", "-m", "lad_engine.evaluate", *(Path(word).name if Path(word).is_absolute() else word for word in words)])


def run_evaluation(arguments: argparse.Namespace, stderr: Console) -> None:
    """Do what the arguments ask; everything that can be refused is refused before a model is loaded."""
    settings = sampling_settings(arguments)
    fixed = sorted(set(settings) - {"max_new_tokens"})
    if arguments.tune_profile and fixed:
        raise ConfigError(f"tune-profile: {fixed[0]} is given, expected only max_new_tokens: the search tries the others. Leave it out.")
    if arguments.profile not in (TASK_SETTINGS, ADAPTER_SETTINGS):
        load_profile(arguments.profile)
    questions = subset(read_questions(arguments.prompts), arguments.limit) if arguments.prompts else []
    names = [*TASKS, TASK] if arguments.tasks == ("all",) else list(arguments.tasks)
    if TASK in names and not questions:
        raise ConfigError(f"prompts: there are none, expected some for the task {TASK}, one of all. Give --prompts FILE.")
    if names and Path(arguments.out).suffix == ".md":
        raise ConfigError(f"out: {arguments.out} is the table's name, expected the JSON's. Give --out results.json.")
    examples = _examples(arguments, names)
    engine = _load(arguments, arguments.model, arguments.adapter, stderr)
    if arguments.samples:
        profile = None if arguments.profile in (TASK_SETTINGS, ADAPTER_SETTINGS) else arguments.profile
        questions = read_questions(arguments.prompts)[: arguments.limit]
        write_samples(Path(arguments.out), arguments.command, engine, questions, engine.sampling(profile, **settings), arguments.batch_size)
        return
    base = engine if engine.adapter_facts is None else _load(arguments, arguments.model, "none", stderr)
    if arguments.judge is None and base.family != "lad" and (arguments.tune_profile or TASK in names):
        raise ConfigError(f"judge: the model decodes as {base.family}, expected a causal one to find perplexity with. Give --judge PATH.")
    judge = Judge(base if arguments.judge is None else _load(arguments, arguments.judge, "none", stderr))
    if arguments.tune_profile:
        _tune(arguments, engine, judge, questions, settings)
        return
    works = []
    for name in names:
        if name == TASK:
            works += _open_works(arguments, engine, base, judge, questions, settings)
        else:
            works += _task_works(arguments, name, engine, base, examples[name], settings)
    if not works:
        raise ConfigError(
            f"evaluate: there is nothing to measure on {', '.join(names)}, expected a decode, a baseline or options to score. "
            "Give --adapter, --baselines or --scoring."
        )
    out = Path(arguments.out)
    countdown = Countdown(sys.stderr, sum(len(work.examples) for work in works))
    records = run(works, Ledger(out.with_suffix(".examples.jsonl")), arguments.batch_size, countdown)
    countdown.close()
    for path in write_report(out, arguments.command, records, {"limit": arguments.limit}):
        print(path)


def _examples(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, list[Example]]:
    names = [name for name in names if name != TASK]
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"tasks: {name!r} is not a task, expected some of {', '.join(TASKS)}, {TASK}, or all.")
        if TASKS[name].runs_code:
            check_allowed(arguments.allow_code_execution)
    return {name: subset(load_set(TASKS[name].set_name, arguments.data), arguments.limit) for name in names}


def _load(arguments: argparse.Namespace, model: str | None, adapter: str, stderr: Console) -> Engine:
    """Load the model with an adapter ("none": alone, as the autoregressive baseline needs it, without a mask token)."""
    config = EngineConfig(
        device=arguments.device,
        dtype=arguments.dtype,
        precision=arguments.precision,
        any_base=arguments.any_base,
        ops=arguments.ops,
        threads=arguments.threads,
        driver="auto",
    )
    if adapter == "none":
        config = dataclasses.replace(config, mask_token=None)
    with LoadProgress(stderr) as progress:
        return Engine.load(model, adapter=None if adapter == "none" else adapter, config=config, progress=progress.update)


def _baselines(arguments: argparse.Namespace, engine: Engine, base: Engine, settings: dict[str, object]) -> list[Condition]:
    if base.family != "lad":
        return []
    asked, drawn = ({name: settings[name]} if name in settings else {} for name in ("max_new_tokens", "seed"))
    ways, system = {"greedy": {**GREEDY, **asked}, "sampled": {**SAMPLED, **asked, **drawn}}, _system_prompt(engine)
    names = [name for name in arguments.baselines if name in ways]
    return [Condition(f"base, {name}", "autoregressive", base, settings=ways[name], system=system) for name in names]


def _system_prompt(engine: Engine) -> str | None:
    """Return what the adapter's chats begin with where nobody says otherwise, which the base alone is then asked under too."""
    return engine.adapter_facts.system_prompt if engine.adapter_facts else None


def _denoises(engine: Engine) -> bool:
    """Whether there is something to decode by diffusion: a causal base alone is only a baseline."""
    return engine.mask_id is not None


def _task_works(
    arguments: argparse.Namespace, name: str, engine: Engine, base: Engine, examples: list[Example], settings: dict[str, object]
) -> list[Work]:
    task, works = TASKS[name], []
    who = engine.adapter_facts.name if engine.adapter_facts else engine.facts.name
    if "generation" in arguments.scoring:
        if arguments.profile == TASK_SETTINGS and engine.family != "lad" and _denoises(engine):
            raise ConfigError(
                f"profile is task, LAD's settings per task, but this checkpoint decodes as {engine.family}, expected adapter or a "
                "profile's name. Give --profile adapter."
            )
        conditions = [Condition(f"{who}, {arguments.profile} settings", "diffusion", engine, arguments.profile, settings)]
        conditions = conditions if _denoises(engine) else []
        # A profile's answers are as long as it says, and the baseline's then too.
        is_by_profile = bool(conditions) and arguments.profile != TASK_SETTINGS
        asked = {**settings, "max_new_tokens": conditions[0].params({}).max_new_tokens} if is_by_profile else settings
        conditions += _baselines(arguments, engine, base, asked)
        works += [generation_work(task, condition, examples) for condition in conditions]
    if "likelihood" in arguments.scoring and task.options is not None:
        if _denoises(engine):
            works.append(likelihood_work(task, Condition(f"{who}, masked copies", "masked likelihood", engine), examples, arguments.copies))
        if base.family == "lad" and arguments.baselines != ("none",):
            exact = Condition("base, exact likelihood", "exact likelihood", base, system=_system_prompt(engine))
            works.append(likelihood_work(task, exact, examples, arguments.copies))
    return works


def _open_works(
    arguments: argparse.Namespace, engine: Engine, base: Engine, judge: Judge, questions: list[Example], settings: dict[str, object]
) -> list[Work]:
    conditions = open_conditions(engine, arguments.profile, arguments.step_counts, settings) if _denoises(engine) else []
    length = conditions[0].params({}).max_new_tokens if conditions else None
    asked = settings if length is None else {**settings, "max_new_tokens": length}
    return [open_work(condition, questions, judge) for condition in [*conditions, *_baselines(arguments, engine, base, asked)]]


def _tune(arguments: argparse.Namespace, engine: Engine, judge: Judge, questions: list[Example], settings: dict[str, object]) -> None:
    length = settings.get("max_new_tokens", engine.sampling().max_new_tokens)
    profile = place_of_profile(engine)
    # Without --out the finished examples lie beside the profile until it is there.
    kept = (profile if arguments.out is None else Path(arguments.out)).with_suffix(".examples.jsonl")
    trials = search(engine, judge, questions, arguments.step_counts, length, Ledger(kept), arguments.batch_size, sys.stderr)
    if arguments.out is not None:
        print(write_trials(Path(arguments.out), arguments.command, trials))
    best = choose(trials, arguments.floor)
    for trial in sorted(trials, key=lambda one: one["nfe"]["value"]):
        mark = "*" if trial is best else " "
        print(f"{mark} {trial['nfe']['value']:6.1f} passes  quality {trial['quality']['value']:.4f}  {trial['name']}")
    print(save(best, trials, arguments.floor, engine, judge, Path(arguments.prompts).name))
    if arguments.out is None:
        kept.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
