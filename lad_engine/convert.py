"""python -m lad_engine.convert: legacy .pth files, PEFT folders, adapter files and pickled models into safe forms, nothing executed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .adapters.full_folder import write_full_folder
from .adapters.legacy import legacy_adapter, read_pickled_peft, read_state
from .adapters.legacy_archive import LegacyArchive
from .adapters.low_rank import Adapter
from .adapters.peft_config import CONFIG_NAME
from .adapters.peft_folder import PICKLE_NAME, WEIGHTS_NAME
from .adapters.pickled_model import holds_pickled_model, write_unpickled_model
from .adapters.reader import PICKLE_ENDINGS, read_adapter
from .adapters.single_file import DTYPES, save_single_file
from .adapters.write_peft import write_peft_folder
from .errors import AdapterError
from .model.weights import open_checkpoint
from .profiles import profile_names
from .terminal.arguments import SentenceParser
from .terminal.outcome import FAILURES, INTERRUPTED, refused
from .text.prompts import FORMATS

FORMS = ("single", "peft", "full")
# options that replace a recorded fact: (option, fact)
FACTS = (
    ("name", "name"),
    ("base_name", "base_name"),
    ("mask_token", "mask_token"),
    ("mask_id", "mask_id"),
    ("eos_id", "eos_id"),
    ("prompt_format", "prompt_format"),
    ("system_prompt", "system_prompt"),
    ("corruption", "corruption"),
    ("profile", "profile"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 with one sentence on standard error for anything the caller can cause)."""
    try:
        print(convert(_parser().parse_args(arguments)))
    except FAILURES as error:
        return refused(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def convert(options: argparse.Namespace) -> str:
    """Convert `options.source` to `options.target` and return one line that says what was written."""
    source, target = Path(options.source).expanduser(), Path(options.target).expanduser()
    is_model = holds_pickled_model(source)
    form = options.to or ("full" if is_model else "single" if target.suffix == ".safetensors" else "peft")
    if target.exists() and not options.overwrite:
        raise AdapterError(f"{target}: exists already, expected a new name. Choose another one or add --overwrite.")
    if target.exists() and source.exists() and target.samefile(source):
        raise AdapterError(f"{target}: is the file to convert itself, expected another name.")
    if is_model:
        return _model(source, target, form, options)
    if not (source.is_file() and source.suffix in PICKLE_ENDINGS):
        if form == "full":
            raise AdapterError(
                f"{source}: holds no base weights, expected a legacy .pth file or a folder with pytorch_model.bin for --to full. "
                "Use --to single or --to peft."
            )
        return _write(_with_facts(_read(source, options.source), options), target, form, options.dtype)
    with LegacyArchive(source) as archive:
        state = read_state(archive)
        adapter = _with_facts(legacy_adapter(archive, state), options)
        if form != "full":
            return _write(adapter, target, form, options.dtype)
        write_full_folder(target, archive, state, adapter, Path(options.tokenizer) if options.tokenizer else None, options.dtype)
    return f"{target}: base model of {source.name}, with its adapter in adapter.safetensors"


def _model(source: Path, target: Path, form: str, options: argparse.Namespace) -> str:
    given = [f"--{option.replace('_', '-')}" for option, _ in FACTS if getattr(options, option) is not None]
    given += [flag for flag, is_given in (("--next-position", options.next_position), ("--base", options.base)) if is_given]
    if form != "full" or given:
        what = ", ".join(given) if given else f"--to {form}"
        raise AdapterError(f"{source}: is a whole model, which {what} says nothing about, expected an adapter for it. Leave it out.")
    facts = write_unpickled_model(target, source, Path(options.tokenizer) if options.tokenizer else None)
    return f"{target}: {facts.family} model that decodes as {facts.decoding}, its weights in safetensors as they were stored"


def _read(source: Path, given: str) -> Adapter:
    if (source / CONFIG_NAME).is_file() and (source / PICKLE_NAME).is_file() and not (source / WEIGHTS_NAME).is_file():
        return read_pickled_peft(source)
    return read_adapter(given)


def _with_facts(adapter: Adapter, options: argparse.Namespace) -> Adapter:
    changes: dict[str, Any] = {fact: getattr(options, option) for option, fact in FACTS if getattr(options, option) is not None}
    if options.next_position:
        changes["predicts_next_token"] = True
    if options.base:
        base = open_checkpoint(options.base).facts
        changes["base_fingerprint"] = base.fingerprint
        changes.setdefault("base_name", base.name)
    return adapter.with_facts(**changes)


def _write(adapter: Adapter, target: Path, form: str, dtype: str) -> str:
    if form == "single":
        save_single_file(target, adapter, dtype=dtype)
    else:
        write_peft_folder(target, adapter, dtype=dtype)
    facts = adapter.facts
    return f"{target}: {facts.name}, rank {facts.rank} on {', '.join(facts.targets)}, {adapter.parameters:,} parameters in {dtype}"


def _parser() -> argparse.ArgumentParser:
    parser = SentenceParser(prog="python -m lad_engine.convert", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "source",
        metavar="IN",
        help="a legacy .pth file, a PEFT folder (also with adapter_model.bin), an adapter file, a hub id, a folder with pytorch_model.bin",
    )
    parser.add_argument("target", metavar="OUT", help="file or folder to write; it appears whole or not at all")
    parser.add_argument(
        "--to",
        choices=FORMS,
        help="one adapter file, a PEFT folder, or a whole model (default: by IN and OUT's ending)",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="how low-rank weights are stored (default: bfloat16)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--base", help="base model (folder or hub id) whose name and fingerprint are recorded")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="with --to full: copy the tokenizer files of this folder")
    facts = parser.add_argument_group("facts to record instead of what IN says")
    facts.add_argument("--name")
    facts.add_argument("--base-name")
    facts.add_argument("--mask-token", help="the mask's piece of text, one token of the base's tokenizer")
    facts.add_argument("--mask-id", type=int)
    facts.add_argument("--eos-id", type=int)
    facts.add_argument("--prompt-format", choices=FORMATS)
    facts.add_argument("--system-prompt")
    facts.add_argument("--corruption")
    facts.add_argument("--profile", choices=profile_names())
    facts.add_argument("--next-position", action="store_true", help="row j-1 predicts position j")
    return parser


if __name__ == "__main__":
    sys.exit(main())
