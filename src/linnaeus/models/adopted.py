"""Any network as a Classifier. Its head, the last linear layer, is found by running it on a blank picture.

A network of the user's own becomes one of the registry by `register_model`; those of torchvision come the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from linnaeus.errors import ModelError
from linnaeus.models.registry import Blueprint, Classifier, Entry, list_models, register
from linnaeus.models.stages import Stages, split_layers

Build = Callable[[int, int, int], nn.Module]

_SIDES = range(
    32, 513, 32
)  # what is tried to say which pictures would fit; patches of 14, 16 and 32 divide 224 and 448


class Adopted(Classifier):
    """A network that knows nothing of our contract.

    Args:
        net: maps float (N, C, H, W) to logits float (N, K); in training it may give auxiliary logits after them.
        heads: names of the linear layers that give these logits, the head first.
        memory_format: the layout of images that it can take.
    """

    def __init__(self, net: nn.Module, heads: tuple[str, ...], memory_format: torch.memory_format) -> None:
        nn.Module.__init__(self)
        self.net, self._heads, self.memory_format = net, heads, memory_format
        self.width = self._linear(heads[0]).in_features

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last layer, wherever the network keeps it."""
        return self._linear(self._heads[0])

    def _linear(self, name: str) -> nn.Linear:
        layer = self.net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, D): what the head sees of images float (N, C, H, W)."""
        seen: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self(images)
        finally:
            handle.remove()
        return seen[-1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float (N, K) of images float (N, C, H, W); in training, auxiliary ones may follow."""
        if self.memory_format is torch.contiguous_format:
            images = images.contiguous()
        logits: torch.Tensor = self.net(images)
        return logits

    def reset_head(self, classes: int) -> None:
        """Replace the head, and the last layers of the auxiliary ones, by fresh ones for this number of classes."""
        for name in self._heads:
            self.net.set_submodule(name, nn.Linear(self._linear(name).in_features, classes))

    def stages(self) -> Stages:
        """Return the parts at the top of the network, those in a row cut further; what holds a head is none."""
        stages: Stages = []
        for name, part in self.net.named_children():
            if any(head == name or head.startswith(f"{name}.") for head in self._heads):
                continue
            row = split_layers(f"net.{name}", part) if isinstance(part, nn.Sequential) else [(f"net.{name}",)]
            stages += row if any(True for _ in part.parameters()) else []
        return stages

    def published(self) -> nn.Module:
        """Return the network itself."""
        return self.net


def register_model(
    name: str,
    build: Build,
    *,
    about: str = "your own network",
    smallest: int = 1,
    size: int = 0,
    any_size: bool = False,
) -> None:
    """Make a network of your own known, so that `linnaeus.train(data, model=name)` takes it.

    Args:
        name: letters, digits, dots, hyphens and underscores. A name that you gave before may be given anew.
        build: makes the network from (classes, channels, size): a module that turns images float
            (N, channels, size, size), normalized, into logits float (N, classes). Its last layer is an nn.Linear. In
            training it may return a tuple: the logits, then those of auxiliary heads.
        about: one sentence for `list_models`.
        smallest: the smallest side of a picture in pixels that it can see.
        size: the side that it was made for, 0 where it adapts to the data.
        any_size: whether one built network takes pictures of any size.

    The registration lasts as long as the process: repeat it before `train(resume=...)`. A bundle needs none.
    Raises ModelError for a name that cannot be used.
    """
    plain = re.fullmatch(r"[A-Za-z0-9_.-]+", name) is not None
    taken = plain and any(not entry.own for entry in list_models(name))
    if taken or not plain:
        got = f"{name!r}, the name of one of linnaeus' own" if taken else repr(name)
        raise ModelError("a new name of letters, digits, '.', '-' and '_'", got=got, fix="Give it another name.")

    def adapted(classes: int, channels: int, size: int) -> Classifier:
        return adapt(Blueprint(name=name, classes=classes, channels=channels, size=size), build)

    register(Entry(name=name, build=adapted, about=about, smallest=smallest, size=size, any_size=any_size, own=True))


def adapt(blueprint: Blueprint, build: Build) -> Classifier:
    """Build a network and put it under our contract.

    Raises ModelError if it cannot see pictures of this size, gives something else than logits float (N, K), or has no
    linear layer at its end.
    """
    name, classes, channels, size = blueprint.name, blueprint.classes, blueprint.channels, blueprint.size
    net = construct(blueprint, build)
    answer = look_once(net.eval(), blueprint, build)
    if not (isinstance(answer, torch.Tensor) and answer.shape == (1, classes) and answer.is_floating_point()):
        raise ModelError(
            f"logits float (1, {classes}) from {name} for an image float (1, {channels}, {size}, {size})",
            got=_describe(answer),
            fix="Let its forward return the logits alone when it is not training.",
        )
    memory_format = _choose_format(net, blueprint)
    return Adopted(net, _find_heads(net.train(), blueprint), memory_format)


def construct(blueprint: Blueprint, build: Build) -> nn.Module:
    """Build a network. Raises ModelError for pictures of a size that it has no shape for, and for what is no module."""
    try:
        net = build(blueprint.classes, blueprint.channels, blueprint.size)
    except (AssertionError, ValueError) as error:
        raise cannot_see(blueprint, build, "its construction", error) from error
    if not isinstance(net, nn.Module):
        fix = f"Let the function registered as {blueprint.name} return a module."
        raise ModelError("a network that is a torch.nn.Module", got=f"a {type(net).__name__}", fix=fix)
    return net


def look_once(net: nn.Module, blueprint: Blueprint, build: Build) -> object:
    """Return what a network that is not training says of a blank picture.

    Raises ModelError that names the layer at which it fails, and a side in pixels that would do.
    """
    with _watch(net) as watched, torch.no_grad():
        try:
            return net(_blank(net, 1, blueprint))
        except Exception as error:  # what is not ours raises what it likes
            raise cannot_see(blueprint, build, watched.where(), error) from error


def cannot_see(blueprint: Blueprint, build: Build, layer: str, error: Exception) -> ModelError:
    """Return the error for pictures that a network cannot see: which layer fails, why, and what size would do."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    side = next((side for side in _SIDES if side > blueprint.size and _can_see(side, blueprint, build)), 0)
    return ModelError(
        f"pictures that {blueprint.name} can see",
        got=f"image_size={blueprint.size}, at which {layer} fails ({reason})",
        fix=f"Set image_size={side}, or choose another model." if side else "Mend it, or choose another model.",
    )


def _can_see(side: int, blueprint: Blueprint, build: Build) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            build(blueprint.classes, blueprint.channels, side).eval()(torch.zeros(1, blueprint.channels, side, side))
    except Exception:  # likewise
        return False
    return True


def _blank(net: nn.Module, count: int, blueprint: Blueprint) -> torch.Tensor:
    """Return blank images where the network lies."""
    device = next((parameter.device for parameter in net.parameters()), torch.get_default_device())
    return torch.zeros(count, blueprint.channels, blueprint.size, blueprint.size, device=device)


def _choose_format(net: nn.Module, blueprint: Blueprint) -> torch.memory_format:
    """Return channels last, the fastest layout, unless the network's own `view`s cannot take it."""
    net.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            net(_blank(net, 1, blueprint).contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        net.to(memory_format=torch.contiguous_format)
        return torch.contiguous_format
    return torch.channels_last


def _find_heads(net: nn.Module, blueprint: Blueprint) -> tuple[str, ...]:
    """Return the names of the linear layers that give a network's answers in training, without changing its state."""
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with _watch(net) as watched, torch.random.fork_rng(devices=[]), torch.no_grad():
        answer = torch.func.functional_call(net, statistics, (_blank(net, 2, blueprint),))
    answers = answer if isinstance(answer, tuple) else (answer,)
    heads = [next((name for name, output in watched.linear if output is each), "") for each in answers]
    if not all(heads):
        raise ModelError(
            "a network whose last layer is an nn.Linear",
            got=f"{blueprint.name}, whose forward returns what no nn.Linear gave ({_describe(answer)})",
            fix="Let it return the output of an nn.Linear as it is, without a softmax.",
        )
    return tuple(heads)


def _describe(answer: object) -> str:
    if isinstance(answer, torch.Tensor):
        return f"{str(answer.dtype).removeprefix('torch.')} {tuple(answer.shape)}"
    return f"a {type(answer).__name__}"


@dataclass(kw_only=True)
class _Watched:
    """What was seen of a run: the layers that it is in, the outermost first, and what the linear layers gave."""

    running: list[str] = field(default_factory=list)
    linear: list[tuple[str, torch.Tensor]] = field(default_factory=list)

    def where(self) -> str:
        """Return the innermost layer that the run is in."""
        return self.running[-1] if self.running else "it"

    def follow(self, name: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Note when a run enters and leaves a layer."""
        label = f"{name} ({type(module).__name__})" if name else type(module).__name__

        def leave(module: nn.Module, _: object, output: torch.Tensor) -> None:
            self.running.pop()
            if isinstance(module, nn.Linear):
                self.linear.append((name, output))

        enter = module.register_forward_pre_hook(lambda *_: self.running.append(label))
        return [enter, module.register_forward_hook(leave)]


@contextmanager
def _watch(net: nn.Module) -> Iterator[_Watched]:
    """Watch a network while the block runs it."""
    watched = _Watched()
    handles = [handle for name, module in net.named_modules() for handle in watched.follow(name, module)]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()
