"""The rules of the tree, read from the source itself: who may import whom, how long a file gets, what never appears in it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
SHARED = {"contracts", "config", "errors"}
ROOMS = {"model", "adapters", "text", "schedules", "samplers", "denoisers", "runtime", "profiles", "ops"}
# A room may always import itself; whatever is not named here is forbidden.
MAY_IMPORT = {
    "kernels": {"_cpu"},
    "errors": set(),
    "contracts": {"errors"},
    "config": {"errors"},
    "ops": {"kernels", "errors"},
    **dict.fromkeys(("profiles", "text", "schedules", "samplers", "runtime"), SHARED | {"profiles"}),
    # A decoding family is a schedule and a sampler put together.
    "denoisers": SHARED | {"samplers", "schedules"},
    "terminal": SHARED | {"text"},
    "families": SHARED,
    "requests": SHARED | {"families", "text"},
    "model": SHARED | {"families"},
    # A tuned profile lies beside an adapter's file and is read with it.
    "adapters": SHARED | {"model", "profiles"},
    "training": SHARED | {"families", "model", "adapters", "schedules", "text", "ops", "kernels"},
    "placement": {"errors"},
    "continuation": SHARED | {"decoding", "denoisers", "model", "runtime", "text"},
    "decoding": SHARED | {"denoisers", "model", "ops", "runtime"},
    "loading": SHARED | {"adapters", "model", "ops", "placement", "text"},
    "engine": SHARED | ROOMS | {"continuation", "decoding", "families", "loading", "requests"},
    "backend": SHARED | {"adapters", "engine", "loading", "requests", "runtime", "text"},
    "__init__": SHARED | {"engine"},
    "generate": SHARED | {"engine", "terminal", "text", "profiles"},
    "server": SHARED | {"backend", "engine", "families", "profiles", "requests", "terminal", "text"},
    "serve": SHARED | {"backend", "engine", "server", "terminal"},
    "compat": SHARED | {"engine", "text", "profiles"},
    "train": SHARED | {"training", "model", "adapters", "text", "ops", "placement", "profiles", "terminal"},
    "evaluation": SHARED | {"adapters", "engine", "profiles", "requests", "text"},
    "evaluate": SHARED | {"adapters", "engine", "evaluation", "profiles", "terminal", "text"},
    "convert": SHARED | {"adapters", "model", "profiles", "terminal", "text"},
}
# Packages only some extra or some Python versions bring, or that take seconds to import and only some commands need.
MAY_BE_IMPORTED_LATE = {
    *("accelerate", "datasets", "matplotlib", "peft", "transformers", "gguf", "huggingface_hub", "lm_eval", "ray", "tomllib"),
}
VARIABLES = {"LAD_OPS", "LAD_CUDA_ARCHS", "LAD_SKIP_EXT", "LAD_CACHE"}
# Set by another program (the hub's client, torchrun, Triton's tests), and honoured.
FOREIGN_VARIABLES = {"HF_HUB_OFFLINE", "WORLD_SIZE", "TRITON_INTERPRET"}
PUBLIC_HOSTS = (
    "arxiv.org",
    "github.com",
    "huggingface.co",
    "pypi.org",
    "pytorch.org",
    "apache.org",
    "python.org",
    "example.com",
    "localhost",
)
TEXT_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh", ".md", ".toml", ".json", ".jsonl", ".yaml", ".sh", ".in", ""}


CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OURS = _sources("lad_engine", "kernels")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in OURS}


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(path: Path) -> tuple[str, ...]:
    """("model", "head") for lad_engine/model/head.py; the kernels tree counts as the room it is installed as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts if parts[0] == "kernels" else parts[1:]


def _imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each import statement with the absolute name of what it imports ("lad_engine.model.head", "torch")."""
    package = ("lad_engine", *_module(path)[:-1])
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield node, ".".join((*base, node.module))
            else:
                yield from ((node, ".".join((*base, alias.name))) for alias in node.names)


@pytest.mark.parametrize("path", OURS, ids=_place)
def test_rooms_import_only_what_they_may(path):
    room = _module(path)[0]
    assert room in MAY_IMPORT, f"{room} has no import rule yet"
    for _, name in _imports(path):
        if name == "lad_engine" or not name.startswith("lad_engine."):
            continue
        other = name.split(".")[1]
        assert other == room or other in MAY_IMPORT[room], f"{_place(path)} imports {name}"


@pytest.mark.parametrize("path", OURS, ids=_place)
def test_imports_stand_at_the_top_except_optional_packages(path):
    top = set(TREES[path].body)
    for guarded in TREES[path].body:
        if isinstance(guarded, (ast.If, ast.Try)):
            top.update(guarded.body)
    for node, name in _imports(path):
        assert node in top or name.split(".")[0] in MAY_BE_IMPORTED_LATE, f"{_place(path)}:{node.lineno} imports {name} inside a function"


@pytest.mark.parametrize("path", OURS, ids=_place)
def test_modules_hold_no_mutable_state(path):
    tree = TREES[path]
    constants = {"__all__", "__path__"}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(
                node.value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
            ):
                assert target.id.strip("_").isupper() or target.id in constants, f"{_place(path)}:{node.lineno} keeps state in {target.id}"
                constants.add(target.id)
    for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
        for node in ast.walk(function):
            assert not isinstance(node, ast.Global), f"{_place(path)}:{node.lineno} rebinds a module name"
            stored = isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del))
            called = isinstance(node, ast.Attribute) and node.attr in ("append", "update", "add", "pop", "clear", "extend", "setdefault")
            if (stored or called) and isinstance(node.value, ast.Name):
                assert node.value.id not in constants, f"{_place(path)}:{node.lineno} changes {node.value.id}"


@pytest.mark.parametrize("path", OURS, ids=_place)
def test_nothing_unpickles_freely(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            call = f"{node.func.value.id}.{node.func.attr}"
            assert call not in ("pickle.load", "pickle.loads"), f"{_place(path)}:{node.lineno} unpickles"
            if call == "torch.load":
                safe = any(keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True for keyword in node.keywords)
                assert safe, f"{_place(path)}:{node.lineno} loads without weights_only=True"


def test_only_the_documented_variables_are_read():
    for path in OURS:
        found = set(re.findall(r"\bLAD_[A-Z_]+\b", path.read_text(encoding="utf-8")))
        assert found <= VARIABLES, f"{_place(path)} names {found - VARIABLES}"
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            read = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and ast.unparse(node.value) == "os.environ"
            asked = isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv") and node.args
            argument = node.slice if read else node.args[0] if asked else None
            if isinstance(argument, ast.Constant):
                assert argument.value in VARIABLES | FOREIGN_VARIABLES, f"{_place(path)}:{node.lineno} reads {argument.value}"


def test_only_backend_files_need_a_compiler_or_an_extension():
    for path in _sources("kernels"):
        if not path.name.endswith("_kernel.py") and not path.name.startswith("device"):
            names = {name.split(".")[0] for _, name in _imports(path)}
            assert not names & {"triton"}, _place(path)
            assert not any(name.endswith("._cpu") for _, name in _imports(path)), _place(path)


@pytest.mark.parametrize("folder", ["lad_engine", "kernels", "csrc", "bench", "tests"])
def test_files_stay_short(folder):
    for path in (path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{_place(path)} has {lines} lines"


def test_test_files_have_unique_names_and_no_packages():
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert "__init__.py" not in names
    assert [name for name, count in names.items() if count > 1 and name != "conftest.py"] == []


def test_no_text_names_a_private_place():
    folders = ("lad_engine", "kernels", "csrc", "bench", "tests", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    private_path = re.compile(r"(?<![\w.])/(home|root|work|Users)/\w")
    host = re.compile(r"https?://([\w.-]+)")
    for path in (path for path in files if path.suffix in TEXT_SUFFIXES):
        text = path.read_text(encoding="utf-8")
        assert not private_path.search(text), f"{_place(path)} names {private_path.search(text)}"
        for name in host.findall(text):
            assert name.endswith(PUBLIC_HOSTS) or name.startswith("127."), f"{_place(path)} names {name}"
