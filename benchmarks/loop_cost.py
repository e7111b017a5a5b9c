"""What linnaeus's training loop costs beyond one written by hand (loop_rival.py)."""

from __future__ import annotations

from collections.abc import Iterator

from measuring import Bench, Figure, median, ratios, run_script

# Where a step is short, the cost of a loop shows most.
CASES = (("simple_cnn", 32, 4096), ("fastnet", 256, 4096))


def measure(bench: Bench) -> Iterator[Figure]:
    """Seconds of an epoch over those of the loop by hand, in turn in one process; median of the pairs.

    Both do the same steps on the same images in memory. linnaeus's side includes its loader, its count of loss and
    accuracy, its guard against a loss that is not finite, and what it does at the end of an epoch but for judging.
    Target: at most 1.03.
    """
    for model, batch, images in CASES:
        pairs, number = (3, 8 * batch) if bench.quick else (15, images)
        options = ("--model", model, "--batch-size", str(batch), "--images", str(number), "--pairs", str(pairs))
        seconds = run_script("loop_segments.py", *options).json()
        yield Figure(
            what=f"training loop, {model}, batch {batch}: time / loop by hand",
            value=median(ratios(seconds["ours"], seconds["theirs"])),
            at_most=1.03,
            details=seconds,
        )
