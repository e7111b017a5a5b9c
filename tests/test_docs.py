"""The documents say what the program is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from breaks import BREAKS
from linnaeus.config import RULES, Settings, check_value, parse_pairs
from linnaeus.data.named import NAMES
from linnaeus.models.registry import find_model

ROOT = Path(__file__).parent.parent


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "make"), [("cli.md", "describe_commands"), ("settings.md", "describe_settings")])
def test_generated_documents_are_fresh(name, make):
    """docs/cli.md and docs/settings.md are what docs/generate.py writes now."""
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == getattr(_generator(), make)(), "Run: python docs/generate.py"


def test_first_code_of_the_readme_comes_early():
    """The README shows its first command by line 25."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert next(i for i, line in enumerate(lines, 1) if line.startswith("```")) <= 25


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/architecture.md"])
def test_links_lead_somewhere(name):
    """Every relative link of a document leads to a file that exists."""
    document = ROOT / name
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_file_map_names_every_module():
    """docs/architecture.md names every module of the package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "src" / "linnaeus").rglob("*.py")} - {"__init__", "__main__"}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\b", text)] == []


CONCEPTS = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`]+)`", CONCEPTS)


def test_settings_of_the_concepts():
    """Every KEY=VALUE on the page of concepts is a setting with a value that it takes."""
    pairs = [pair for text in QUOTED for pair in text.split() if re.fullmatch(r"[a-z_0-9]+=\S+", pair)]
    assert len(pairs) > 60
    for name, value in parse_pairs(pairs).items():
        check_value(name, value)
    for pair in pairs:
        Settings.of(parse_pairs([pair]))


def test_files_and_networks_of_the_concepts():
    """Every file, test, network and link on the page of concepts is there."""
    files = [text for text in QUOTED if re.fullmatch(r"[\w/*]+\.py", text)]
    assert len(files) > 40
    for file in files:
        assert list(ROOT.glob(file)) or (ROOT / "src" / "linnaeus" / file).is_file(), file
    networks = re.search(r"\| network \|.*?\n\n", CONCEPTS, re.DOTALL)[0]
    for name in re.findall(r"`([a-z]+\w*\d*\w*)`", networks):
        assert find_model(name).name == name
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", CONCEPTS)
    assert all((ROOT / "docs" / link).exists() for link in links)


@pytest.mark.parametrize("setting", ["activation", "loss", "optimizer", "sampling", "schedule", "policy", "pooling"])
def test_every_choice_is_a_concept(setting):
    """Each activation, loss, optimizer and so on that can be chosen stands on the page of concepts."""
    spelled = re.sub(r"[^a-z0-9]", "", CONCEPTS.lower())
    missing = [name for name in RULES[setting]["choices"] if name.replace("_", "") not in spelled]
    assert [name for name in missing if name != "none"] == []


def test_terms_of_the_textbooks():
    """What textbooks on image classification name is found on the page of concepts."""
    terms = """convolution, filter, kernel, feature map, padding, max pooling, average pooling, flattening, fully
        connected, sigmoid, tanh, relu, leaky relu, softmax, cross-entropy, mean squared error, focal loss,
        gradient descent, stochastic gradient descent, adam, rmsprop, learning rate, learning rate decay,
        backpropagation, batch, epoch, l1, l2, dropout, batch norm, early stopping, overfitting, resizing,
        cropping, normalization, one-hot, flips, rotation, shift, change of size, brightness, contrast,
        noise, training, validation and test set, k-fold, accuracy, precision, recall, f1, confusion matrix,
        class weights, oversampling, undersampling, lenet-5, alexnet, vgg, googlenet, resnet, inception,
        residual, transfer learning, fine-tuning, pre-training, mixed precision"""
    text = CONCEPTS.lower().replace("over- and undersampling", "oversampling, undersampling")
    assert [term for term in " ".join(terms.split()).split(", ") if term not in text] == []


def test_examples_name_real_settings():
    """Each script of examples/ is one command of linnaeus whose settings exist, and the page of examples lists it."""
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    scripts = sorted((ROOT / "examples").glob("*.sh"))
    assert scripts
    for script in scripts:
        assert f"({script.name})" in listed
        (line,) = re.findall(r"^exec linnaeus (.*)", script.read_text().replace("\\\n", ""), re.MULTILINE)
        command, data, *rest = line.split()
        assert command in ("train", "crossval"), script.name
        assert data in (*NAMES, '"$folder"'), script.name
        assert rest[-1] == '"$@"'
        Settings.of(parse_pairs([word for word in rest if "=" in word]))


def test_the_table_of_breaks_is_fresh():
    """Each deliberate break of tests/breaks.py stands once in its file, changes it, and names a test that exists."""
    for each in BREAKS:
        source = (ROOT / "src" / "linnaeus" / each.file).read_text(encoding="utf-8")
        assert source.count(each.old) == 1, each.what
        assert each.new != each.old
        file, name = each.test.split("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), each.what
    assert len({each.what for each in BREAKS}) == len(BREAKS)
