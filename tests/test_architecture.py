"""The rules of docs/architecture.md: who may import whom, what happens at import, and the public surface."""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import linnaeus
from commands import SOURCES, run_python
from linnaeus.cli.main import commands

pytest_plugins = ("fixtures_run",)

ROOT = SOURCES / "linnaeus"

# From the bottom to the top. A room imports from lower rows only, so the rooms of one row do not import one another.
ROWS = (
    ("errors", "durations", "ranges"),
    ("config", "results", "storage", "decoding", "labelling"),
    ("images", "fetching"),
    ("bundle",),
    ("predictor",),
    ("runtime", "display", "runfolder", "answers"),
    ("data", "models", "training parts", "evaluation", "compression", "reporting"),
    ("training", "recipes", "judging", "catalogue", "comparison"),
    ("learning", "delivery", "ground", "trials", "reporting.summary"),
    ("runs", "looking", "ensembles"),
    ("crossval", "estimator", "tuning"),
    ("serving",),
    ("cli",),
    ("__main__",),
)
PARTS = ("training.losses", "training.imbalance", "training.optim", "training.checkpoint", "training.tracking")
RUN_SIDE = (
    "errors",
    "durations",
    "config",
    "results",
    "storage",
    "decoding",
    "labelling",
    "images",
    "bundle",
    "predictor",
    "display",
    "comparison",
    "serving.worker",
    "serving.supervisor",
    "cli.main",
)
HEAVY = ("torch", "torchvision", "timm", "sklearn", "safetensors", "onnx")

# What is imported inside functions, and why.
INSIDE = {
    ("catalogue", "torch"): "start-up: most of a second, and few networks need it",
    ("cli.combining", "linnaeus"): "start-up: a command loads what it needs",
    ("cli.judging", "linnaeus"): "start-up: a command loads what it needs",
    ("cli.serving", "linnaeus"): "start-up: a command loads what it needs",
    ("cli.training", "linnaeus"): "start-up: a command loads what it needs",
    ("cli.using", "linnaeus"): "start-up: a command loads what it needs",
    ("data.mixing", "scipy"): "start-up: a fifth of a second, and few runs mix images",
    ("data.named", "sklearn"): "an optional extra",
    ("data.tables", "pyarrow"): "an optional extra",
    ("data.augment", "linnaeus"): "start-up: torchvision, which few runs need",
    ("display", "rich"): "start-up: most uses of the library say nothing",
    ("models.registry", "linnaeus"): "each family imports the registry to enter itself",
    ("models.weights", "linnaeus"): "an optional extra: timm",
    ("runtime", "importlib"): "start-up",
    ("training.optim", "timm"): "start-up: few ask for these optimizers",
    ("training.tracking", "torch"): "an optional extra: tensorboard",
}


def module_names() -> dict[str, Path]:
    """Return every module of the package by its name below the root, the root itself left out."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in names.items() if name != "__init__"}


MODULES = module_names()


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each name that a file imports, and whether it does so inside a function; what only types need is none."""
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text()), False)]
    while waiting:
        node, inside = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from ((_imported(node, alias.name), inside) for alias in node.names)
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        waiting += [(child, within) for child in ast.iter_child_nodes(node)]


def _imported(node: ast.ImportFrom, name: str) -> str:
    """Return the module behind `from a.b import c`: a.b.c where that is one of ours, else a.b."""
    whole = f"{node.module}.{name}"
    return whole if whole.removeprefix("linnaeus.") in MODULES else "." * node.level + (node.module or "")


def ours(path: Path, *, inside: bool) -> set[str]:
    """Return the modules of linnaeus that a file imports, those inside functions too if asked."""
    found = {name for name, within in imports_of(path) if inside or not within}
    return {name.removeprefix("linnaeus.") for name in found if name.startswith("linnaeus.")}


def room(module: str) -> str:
    """Return the room that a module belongs to."""
    if module in PARTS:
        return "training parts"
    rooms = [name for row in ROWS for name in row]
    fitting = [name for name in rooms if module == name or module.startswith(name + ".")]
    assert fitting, f"{module} has no place in ROWS: give it one"
    return max(fitting, key=len)


def row(module: str) -> int:
    """Return the number of the row of a module, 0 at the bottom."""
    return next(number for number, rooms in enumerate(ROWS) if room(module) in rooms)


def test_imports_run_down_the_rows() -> None:
    """A module imports from lower rows or from its own room, inside functions too."""
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in ours(path, inside=True)
        if not (row(other) < row(module) or room(other) == room(module))
    ]
    assert wrong == []


def test_no_import_cycle() -> None:
    """The graph of the imports at the top of modules has no cycle."""
    graph = {module: ours(path, inside=False) for module, path in MODULES.items()}
    while free := [module for module, needs in graph.items() if not needs]:
        for module in free:
            del graph[module]
        graph = {module: needs - set(free) for module, needs in graph.items()}
    assert graph == {}


def test_nothing_imports_the_package_root() -> None:
    """No module imports `linnaeus` itself, nor relatively."""
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name, _ in imports_of(path)
        if name == "linnaeus" or name.startswith(".")
    ]
    assert wrong == []


def test_imports_inside_functions_have_a_reason() -> None:
    """An import inside a function is one of a short list, and the list has no entry too many."""
    found = {
        (module, name.split(".")[0])
        for module, path in MODULES.items()
        for name, inside in imports_of(path)
        if inside and name.split(".")[0] != module
    }
    assert found == set(INSIDE)


OTHERS = {name for path in MODULES.values() for name, inside in imports_of(path) if not inside}
QUIET = f"""
import importlib, logging, os, random, signal, sys, threading, warnings
import torch
for name in {sorted(name for name in OTHERS if not name.startswith("linnaeus"))!r}:
    importlib.import_module(name)
modules = {sorted(MODULES)!r}
def state():
    return (dict(os.environ), threading.active_count(), logging.root.handlers[:], logging.root.level,
            signal.getsignal(signal.SIGTERM), random.getstate(), torch.initial_seed(), torch.get_num_threads(),
            list(warnings.filters), sys.stdout, sys.stderr, sys.excepthook, os.getcwd())
def watch(event, details):
    network = event.startswith(("socket.", "urllib.", "http."))
    written = event == "open" and isinstance(details[1], str) and set(details[1]) & set("wax+")
    if network or event in ("subprocess.Popen", "os.system", "os.mkdir") or written:
        raise SystemExit(f"at import: {{event}} {{details}}")
before = state()
sys.dont_write_bytecode = True
sys.addaudithook(watch)
for name in modules:
    importlib.import_module("linnaeus." + name)
changed = [i for i, (a, b) in enumerate(zip(before, state())) if a != b]
sys.exit(f"changed at import: {{changed}}" if changed else 0)
"""


def test_nothing_happens_at_import() -> None:
    """Importing every module prints nothing, starts no thread or program, and touches no setting, file or network."""
    done = run_python(QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LOADED = f"""
import importlib, sys
for name in {RUN_SIDE!r}:
    importlib.import_module("linnaeus." + name)
import linnaeus
linnaeus.load, linnaeus.read_image, linnaeus.Settings, linnaeus.Predictions, dir(linnaeus)
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_the_run_side_imports_no_torch() -> None:
    """What predicts needs neither torch nor anything else of the training side."""
    done = run_python(LOADED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


BLOCKED = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from linnaeus.cli.main import main
main(sys.argv[1:])
"""


def test_a_small_installation_predicts(run_folder: Path, photos: Path) -> None:
    """Without the training packages predict, evaluate, report, settings and help work as ever."""
    picture = photos / "red" / "40.png"
    done = run_python(BLOCKED, "predict", run_folder, picture)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{picture}: ")
    done = run_python(BLOCKED, "evaluate", run_folder, photos, "--json")
    expected = json.loads((run_folder / "report.json").read_text())["scores"]["test"]
    assert json.loads(done.stdout) == {"split": "test"} | expected
    for arguments in (("--help",), ("settings",), ("report", run_folder)):
        done = run_python(BLOCKED, *arguments)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["train", "models", "demo"])
def test_a_small_installation_says_what_is_missing(command: str, photos: Path, tmp_path: Path) -> None:
    """Without the training packages training ends with the exact line that installs them, and writes nothing."""
    arguments = {"train": (photos, "--out", tmp_path / "run"), "models": (), "demo": ("--out", tmp_path / "run")}
    done = run_python(BLOCKED, command, *arguments[command])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert 'Run: pip install "linnaeus[train]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_public_names() -> None:
    """These names are the library's promise, and each of them is there."""
    assert linnaeus.__all__ == [
        "ImageClassifier",
        "LinnaeusError",
        "Predictions",
        "Predictor",
        "Scores",
        "Settings",
        "compare",
        "cross_validate",
        "describe_model",
        "ensemble",
        "evaluate",
        "find_lr",
        "list_models",
        "load",
        "read_image",
        "register_model",
        "train",
        "tune",
    ]
    assert dir(linnaeus) == linnaeus.__all__
    assert all(getattr(linnaeus, name) is not None for name in linnaeus.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        _ = linnaeus.fly


def test_the_commands_and_their_flags() -> None:
    """These commands, arguments and flags are the command line's promise."""
    surface = {
        name: [next(iter(p.opts)) if isinstance(p, click.Option) else p.name.upper() for p in command.params]
        for name, command in commands.commands.items()
    }
    assert surface == {
        "compare": ["RUNS", "--json"],
        "crossval": [
            "DATA",
            "PAIRS",
            "--model",
            "--epochs",
            "--budget",
            "--seed",
            "--folds",
            "--repeats",
            "--out",
            "--json",
        ],
        "data": ["DATA", "PAIRS", "--show-augmentations", "--json"],
        "demo": ["--out", "--seed"],
        "ensemble": ["BUNDLES", "--out", "--data", "--how", "--tta", "--json"],
        "evaluate": ["BUNDLE", "DATA", "--split", "--json"],
        "models": ["PATTERN", "--small", "--measure", "--json"],
        "predict": ["BUNDLE", "IMAGES", "--top", "--json", "--csv"],
        "report": ["RUN"],
        "serve": ["BUNDLES", "--host", "--port", "--workers", "--token-file", "--allow-host"],
        "settings": [],
        "train": [
            "DATA",
            "PAIRS",
            "--model",
            "--epochs",
            "--budget",
            "--seed",
            "--out",
            "--resume",
            "--find-lr",
            "--json",
        ],
        "tune": [
            "DATA",
            "PAIRS",
            "--model",
            "--epochs",
            "--budget",
            "--seed",
            "--trials",
            "--search",
            "--space",
            "--out",
            "--json",
        ],
    }
    assert [next(iter(option.opts)) for option in commands.params] == ["--version"]


def _median_seconds(*command: str) -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *command], env={"PYTHONPATH": str(SOURCES)}, stdout=subprocess.DEVNULL, check=True
        )
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def test_help_comes_at_once() -> None:
    """`linnaeus --help` takes at most 0.15 s more than Python with click alone, so below 0.3 s on an idle machine."""
    bare = _median_seconds("-c", "import click")
    if bare > 0.3:
        pytest.skip(f"this machine is overloaded: `import click` takes {bare:.2f} s")
    assert _median_seconds("-m", "linnaeus", "--help") - bare < 0.15
