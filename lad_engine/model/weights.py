"""Open a base checkpoint (folder, hub id, GGUF file, embedded default) and stream its tensors without copying them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..contracts import ModelFacts
from ..errors import CheckpointError
from ..families import TIME_EMBEDDING, decoding_of
from .cache import Progress
from .default_base import DEFAULT_NAME, default_folder
from .facts import names_mask_token, read_facts, read_json
from .gguf import gguf_folder
from .gpt2 import expected_shapes as gpt2_shapes
from .hub import download, is_hub_id
from .latent_facts import latent_shapes, read_latent
from .layouts import is_transposed, plain_names
from .simplex_facts import simplex_facts

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
FINGERPRINT_VALUES = 64


@dataclass(frozen=True)
class Checkpoint:
    """A base checkpoint on disk, its headers read and checked, its tensors not yet.

    folder: holds config.json and the tokenizer files. files: tensor name -> the safetensors file it lies in.
    shapes: tensor name -> shape. Names are Hugging Face's; ignored buffers and the copy of a tied head are left out. stored: tensor name
    -> the name in the file, where it is another one (see `layouts`). Linear weights are `[out, in]` whatever the file holds.
    """

    facts: ModelFacts
    folder: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """Return the tensor names, sorted."""
        return tuple(sorted(self.files))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) file by file, in the dtype stored; memory-mapped, so copy before writing into one."""
        for path in sorted(set(self.files.values())):
            with _open(path) as file:
                for name in sorted(name for name, home in self.files.items() if home == path):
                    tensor = file.get_tensor(self.stored.get(name, name))
                    yield name, tensor.T if is_transposed(name, self.facts.family) else tensor


def open_checkpoint(source: str | Path | None = None, *, progress: Progress | None = None) -> Checkpoint:
    """Find `source`, read its config and tensor headers, and check that they fit each other.

    Args:
        source: a Hugging Face folder, a hub id ("owner/name"), a .gguf file, or None for the embedded default base.
            Hub ids honour HF_HUB_OFFLINE and HF_HOME; GGUF files are converted once into the cache.
        progress: called during downloads and conversions, see `cache.Progress`.
    Raises:
        CheckpointError: nothing is there, a file is damaged, or a tensor is missing, unknown or wrongly shaped.
        DownloadError: something could not be fetched or stored.
    """
    folder, name = _locate(source, progress)
    facts = read_facts(folder, name)
    files, shapes, stored = _read_headers(folder, facts)
    facts = _decoding(facts, folder, stored)
    if facts.decoding == "latent_ode":
        latent = read_latent(read_json(folder / "config.json"), shapes, str(folder / "config.json"))
        facts = replace(facts, extra=latent.to_extra())
    check_names(facts, shapes, where=str(folder))
    checkpoint = Checkpoint(facts, folder, files, shapes, stored)
    return replace(checkpoint, facts=replace(checkpoint.facts, fingerprint=fingerprint(checkpoint)))


def read_sequence_classifier(folder: str | Path) -> Checkpoint:
    """Read a causal decoder with a `score` matrix in place of its head (Hugging Face's sequence classification), names unchecked.

    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    folder = Path(folder).expanduser()
    # A head nobody has is not missed where it is taken for the embedding.
    facts = replace(read_facts(folder), has_tied_head=True)
    return Checkpoint(facts, folder, *_read_headers(folder, facts))


def check_names(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]], where: str = "checkpoint") -> None:
    """Refuse missing, unknown and wrongly shaped tensors, naming the first few of them."""
    expected = expected_shapes(facts)
    missing = sorted(expected.keys() - shapes.keys())
    unknown = sorted(shapes.keys() - expected.keys())
    if missing:
        raise CheckpointError(
            f"{where}: {_several(missing)} missing. Download the checkpoint again, or check that its config.json is its own."
        )
    if unknown:
        raise CheckpointError(
            f"{where}: {_several(unknown)} not part of a {facts.family} model. Check that config.json is the checkpoint's own."
        )
    for name in sorted(expected):
        if tuple(shapes[name]) != expected[name]:
            raise CheckpointError(
                f"{where}: {name} is {tuple(shapes[name])}, expected {expected[name]}. Check that config.json is the checkpoint's own."
            )


def expected_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Return every tensor a checkpoint of these facts holds, by Hugging Face name."""
    if facts.family == "gpt2":
        return gpt2_shapes(facts)
    query_width, kv_width = facts.query_heads * facts.head_width, facts.kv_heads * facts.head_width
    shapes = {"model.embed_tokens.weight": (facts.vocab_size, facts.width), "model.norm.weight": (facts.width,)}
    if not facts.has_tied_head:
        shapes["lm_head.weight"] = (facts.vocab_size, facts.width)
    for layer in range(facts.layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q_proj", query_width), ("k_proj", kv_width), ("v_proj", kv_width)):
            shapes[f"{prefix}self_attn.{name}.weight"] = (rows, facts.width)
            if facts.has_qkv_bias:
                shapes[f"{prefix}self_attn.{name}.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (facts.width, query_width)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (facts.mlp_width, facts.width)
        shapes[f"{prefix}mlp.up_proj.weight"] = (facts.mlp_width, facts.width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (facts.width, facts.mlp_width)
        shapes[f"{prefix}input_layernorm.weight"] = (facts.width,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (facts.width,)
    if facts.decoding == "latent_ode":
        shapes.update(latent_shapes(facts))
    if facts.extra.get("has_time_embedding"):
        shapes[TIME_EMBEDDING] = (facts.width, 1)
    return shapes


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return what tells one base from another whatever dtype, sharding or file format it is stored in.

    SHA-256 over the sorted names and shapes and, of each tensor, the first 64 values rounded to bf16.
    """
    beginnings: dict[str, bytes] = {}
    for path in sorted(set(checkpoint.files.values())):
        with _open(path) as file:
            for name in (name for name, home in checkpoint.files.items() if home == path):
                beginnings[name] = _beginning(file, checkpoint.stored.get(name, name))
    digest = hashlib.sha256()
    for name in checkpoint.names():
        digest.update(f"{name}{list(checkpoint.shapes[name])}".encode())
        digest.update(beginnings[name])
    return digest.hexdigest()


def _beginning(file: safe_open, stored: str) -> bytes:
    part = file.get_slice(stored)
    shape = part.get_shape()
    rows = -(-FINGERPRINT_VALUES // (shape[1] if len(shape) > 1 else 1))
    values = part[:rows].flatten()[:FINGERPRINT_VALUES].to(torch.bfloat16)
    return values.view(torch.int16).numpy().tobytes()


def _locate(source: str | Path | None, progress: Progress | None) -> tuple[Path, str]:
    """Return the folder of `source` and the name to show for it ("" takes the folder's)."""
    if source is None:
        return default_folder(progress), DEFAULT_NAME
    path = Path(source).expanduser()
    if path.is_dir():
        return path, ""
    if path.suffix == ".gguf" and path.is_file():
        return gguf_folder(path, progress), path.stem
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a {path.suffix or 'plain'} file, expected a model folder, a .gguf file or a hub id. Give its folder."
        )
    if path.suffix != ".gguf" and is_hub_id(source):
        return download(str(source), progress), str(source)
    raise CheckpointError(
        f"{source}: no such folder or file, expected a model folder, a .gguf file or a hub id like owner/name. Check the path."
    )


def _decoding(facts: ModelFacts, folder: Path, stored: Mapping[str, str]) -> ModelFacts:
    """Complete the facts with what the tensors and the tokenizer say about decoding."""
    config = read_json(folder / "config.json")
    names = [*stored, *stored.values()]
    decoding = decoding_of(config, names, names_mask_token(folder))
    # Row j-1 predicts position j in every masked model made from a causal one; LLaDA was trained from scratch.
    shifts = config.get("predicts_next_token", decoding in ("masked", "simplex") and facts.family != "llada")
    facts = replace(facts, decoding=decoding, predicts_next_token=bool(shifts))
    return simplex_facts(facts, config, names, str(folder)) if decoding == "simplex" else facts


def _read_headers(folder: Path, facts: ModelFacts) -> tuple[dict[str, Path], dict[str, tuple[int, ...]], dict[str, str]]:
    """Return file and shape of every tensor by our name, and the stored names."""
    homes: dict[str, Path] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str] = {}
    for path in _safetensors_files(folder):
        with _open(path) as file:
            for name in file.keys():
                if name in homes:
                    raise CheckpointError(
                        f"{folder}: {name} is in {homes[name].name} and in {path.name}. Remove the file that is not its own."
                    )
                header = file.get_slice(name)
                homes[name], sizes[name], kinds[name] = path, tuple(header.get_shape()), header.get_dtype()
    stored = {name: place for name, place in plain_names(list(homes), facts.family).items() if not _is_copy(name, facts)}
    for place in stored.values():
        if kinds[place] not in FLOAT_DTYPES:
            accepted = ", ".join(FLOAT_DTYPES)
            raise CheckpointError(
                f"{homes[place]}: {place} is {kinds[place]}, expected one of {accepted}. Use a checkpoint that is not quantised."
            )
    shapes = {name: sizes[at][::-1] if is_transposed(name, facts.family) else sizes[at] for name, at in stored.items()}
    return {name: homes[place] for name, place in stored.items()}, shapes, stored


def _safetensors_files(folder: Path) -> list[Path]:
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{index_path}: weight_map is missing, expected tensor names and their files. Download it again.")
        paths = [folder / file for file in sorted(set(weight_map.values()))]
        for path in paths:
            if path.resolve().parent != folder.resolve() and path.parent != folder:
                raise CheckpointError(f"{index_path}: names {path}, expected files of its own folder. Download it again.")
            if not path.is_file():
                raise CheckpointError(
                    f"{folder}: {path.name} is missing, expected because the index names it. Download the checkpoint again."
                )
        return paths
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    advice = "Download the weights"
    if pickled:
        advice = f"{pickled[0]} is a pickle, which is never loaded; convert it once with: python -m lad_engine.convert {folder} OUT"
    raise CheckpointError(f"{folder}: model.safetensors is missing, expected it or model.safetensors.index.json. {advice}.")


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is not a complete safetensors file ({error}). Delete it and fetch it again.") from None


def _is_copy(name: str, facts: ModelFacts) -> bool:
    return facts.has_tied_head and name == "lm_head.weight"


def _several(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
