"""How a network does on images that it does not learn from."""

from __future__ import annotations

import math

import torch
from torch import nn

from linnaeus.data.loaders import Loader
from linnaeus.results import Validation
from linnaeus.runtime import World, autocast, compute_in_halves
from linnaeus.training.measures import count_right, rank_labels, sum_losses
from linnaeus.training.plan import Plan
from linnaeus.training.tasks import Normalizer


@torch.inference_mode()
def judge(model: nn.Module, loader: Loader, normalize: Normalizer, plan: Plan) -> Validation:
    """Return how a network does on a loader's images; loss NaN and accuracy 0 where there are none."""
    was_training = model.training
    model.eval()
    loss = correct = seen = 0.0
    answers: list[tuple[torch.Tensor, torch.Tensor]] = []  # ranking needs all at once
    for loaded in loader.batches() if len(loader.indices) else ():
        batch = loaded.to(plan.device)
        with autocast(plan.device, plan.precision):
            logits = compute_in_halves(lambda pixels: model(normalize(pixels)), batch.pixels).float()
        loss += sum_losses(logits, batch.labels)
        correct += count_right(logits, batch.labels)
        seen += len(batch.labels)
        if batch.labels.ndim == 2:
            answers.append((logits.cpu(), batch.labels.cpu()))
    model.train(was_training)
    loss, correct, seen = plan.world.sum([loss, correct, seen])
    if not seen:
        return Validation(loss=math.nan, accuracy=0.0)
    return Validation(loss=loss / seen, accuracy=correct / seen, mean_ap=_rank_all(answers, plan.world))


def _rank_all(answers: list[tuple[torch.Tensor, torch.Tensor]], world: World) -> float:
    """Return the mean average precision over logits and labels of all processes, NaN where images have one label."""
    if not answers:
        return math.nan
    logits, labels = (world.join(torch.cat(each)) for each in zip(*answers))
    return rank_labels(logits, labels)
