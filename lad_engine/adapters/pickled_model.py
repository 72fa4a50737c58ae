"""A model folder whose weights are pickles (pytorch_model.bin, as L2D's are saved) as one with safetensors; nothing is executed."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from ..contracts import ModelFacts
from ..errors import AdapterError, CheckpointError
from ..model.facts import read_facts, read_json
from ..model.layouts import plain_names
from ..model.weights import open_checkpoint
from .full_folder import copy_tokenizer
from .legacy import read_state
from .legacy_archive import LegacyArchive, TensorRef
from .shards import write_shards
from .whole_files import whole_folder

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
CONFIG = "config.json"


def holds_pickled_model(folder: Path) -> bool:
    """Say whether a folder is a model whose weights are pickles."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (SINGLE, INDEX))


def write_unpickled_model(folder: str | Path, source: Path, tokenizer: Path | None = None) -> ModelFacts:
    """Write `source` anew with the same config and tokenizer and its weights as safetensors, in the dtypes stored; returns its facts.

    Names that an engine never reads (buffers, the copies by which an adapted layer reaches its base weight) stay behind. The result is
    opened and checked before it takes its place.
    Raises:
        AdapterError: a pickle is refused or damaged, its tensors do not fit config.json, or the folder cannot be written.
        CheckpointError: config.json is not one of a model we decode.
    """
    folder = Path(folder)
    family = read_facts(source).family
    with ExitStack() as stack, whole_folder(folder, CONFIG) as temporary:
        tensors: dict[str, tuple[LegacyArchive, TensorRef]] = {}
        for path in pickle_files(source):
            archive = stack.enter_context(LegacyArchive(path))
            for name, ref in read_state(archive).tensors.items():
                if name in tensors:
                    raise AdapterError(
                        f"{path}: {name} is in {tensors[name][0].path.name} too, expected it once. Download the model again."
                    )
                tensors[name] = archive, ref
        kept = set(plain_names(list(tensors), family).values())
        write_shards(temporary, {name: place for name, place in tensors.items() if name in kept})
        shutil.copyfile(source / CONFIG, temporary / CONFIG)
        copy_tokenizer(temporary, tokenizer or source)
        try:
            return open_checkpoint(temporary).facts
        except CheckpointError as error:
            raise AdapterError(f"{source}: its weights cannot be used: {str(error).replace(str(temporary), str(source))}") from error


def pickle_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: those an index names, in its own folder, else the single one.

    Raises:
        AdapterError: the index names no files, or others than those beside it.
    """
    if not (folder / INDEX).is_file():
        return [folder / SINGLE]
    places = read_json(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not (folder / name).is_file() for name in names):
        raise AdapterError(f"{folder / INDEX}: names {names}, expected files beside it. Download the model again.")
    return [folder / name for name in names]
