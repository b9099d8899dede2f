"""The project's speed goals as data: each with its floor, and whether it was met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels import roofline
from benchmarks.kernels.speeds import ALONE, OURS, best_baseline
from benchmarks.suite.bench import SDXL, Result

Found = tuple[float, str]  # a value, and what it was measured with
Results = Mapping[str, Result]

# One row of SDXL's UNet at 1024 × 1024 (from the architecture: 2.567 B parameters), and what mixed attention adds to an
# identity row: as many keys again, in 10 layers of 10 heads × 4096 tokens and 60 of 20 heads × 1024. 10¹² operations.
ROW = 6.76
MIXED_ROW = 2 * 2 * 64 * (10 * 10 * 4096**2 + 60 * 20 * 1024**2) / 1e12
# What the library's large matrix product reaches on an H100 or H200, out of the datasheet's 989 TFLOP/s.
MATRIX_TERAFLOPS = 790.0


def step_floor(text_rows: int, identity_rows: int) -> float:
    """Return the milliseconds of a step if all of it ran as fast as a large matrix product.

    Args:
        text_rows: rows of the text stream that are computed; 0 from a template.
        identity_rows: rows of the identity stream.
    """
    return ((text_rows + identity_rows) * ROW + identity_rows * MIXED_ROW) / MATRIX_TERAFLOPS * 1e3


@dataclass(frozen=True)
class Goal:
    """A goal on an H100; an H200 has the same chip and the same goals.

    Args:
        what: what is measured, in words.
        wanted: the value to reach.
        unit: unit of the value.
        floor: the value that nothing can beat; None if there is none.
        found: returns the value and what it was measured with, or None if it was not measured.
        more: whether a higher value is better.
    """

    what: str
    wanted: float
    unit: str
    floor: float | None
    found: Callable[[Results], Found | None]
    more: bool = False

    @property
    def words(self) -> str:
        """The value to reach, in words."""
        return f"{'≥' if self.more else '≤'} {self.wanted:g} {self.unit}"

    def met(self, value: float) -> bool:
        """Return whether a value meets the goal."""
        return value >= self.wanted if self.more else value <= self.wanted

    def verdict(self, value: float | None) -> str:
        """Return whether a value meets the goal, in words; None was not measured."""
        if value is None:
            return "not measured"
        return "met" if self.met(value) else f"missed by {abs(value / self.wanted - 1):.1%}"


def median(result: Result) -> float | None:
    """Return a result's median in milliseconds: its own, or that of its fastest contender."""
    if "median" in result:
        return float(result["median"])
    rows = (row for row in result.get("contenders", {}).values() if "median" in row)
    return min((float(row["median"]) for row in rows), default=None)


def fastest(*names: str) -> Callable[[Results], Found | None]:
    """Return a goal's value: the shortest median of several items that do the same work."""

    def found(results: Results) -> Found | None:
        times = [(time, name) for name in names if (time := median(results.get(name, {}))) is not None]
        return min(times, default=None)

    return found


def ratio(*pairs: tuple[str, str]) -> Callable[[Results], Found | None]:
    """Return a goal's value: the smallest ratio of two medians; both items of a pair are run in the same way."""

    def found(results: Results) -> Found | None:
        ratios = []
        for above, below in pairs:
            times = [median(results.get(name, {})) for name in (above, below)]
            if times[0] is not None and times[1] is not None:
                ratios.append((times[0] / times[1], f"{above} / {below}"))
        return min(ratios, default=None)

    return found


def _ours(results: Results, name: str) -> tuple[float, float, str] | None:
    """Return milliseconds and TFLOP/s of our fastest item in fp16, with the table's choice or the tuned one."""
    items = (f"speed {name} float16", f"tuned {name} float16")
    rows = {item: results.get(item, {}).get("contenders", {}).get(OURS, {}) for item in items}
    return min(
        ((float(row["median"]), float(row["teraflops"]), item) for item, row in rows.items() if row.get("right")),
        default=None,
    )


def rate(name: str) -> Callable[[Results], Found | None]:
    """Return a goal's value: our TFLOP/s."""

    def found(results: Results) -> Found | None:
        ours = _ours(results, name)
        return ours[1:] if ours else None

    return found


def against_baselines(name: str) -> Callable[[Results], Found | None]:
    """Return a goal's value: the speedup over the best baseline that does all the work, compiled or not."""

    def found(results: Results) -> Found | None:
        rows = dict(results.get(f"speed {name} float16", {}).get("contenders", {}))
        compiled = results.get(f"compiled baselines {SDXL.calls[name].op}", {}).get("calls", {})
        rows |= compiled.get(name, {}).get("contenders", {})
        best, ours = best_baseline(rows), _ours(results, name)
        return (rows[best]["median"] / ours[0], best) if best and ours else None

    return found


def _attention_floor(name: str) -> float:
    """Return the TFLOP/s that no version can exceed on an H100: its slowest unit decides."""
    call = SDXL.calls[name]
    return roofline.flops(call) / max(roofline.limits(call, roofline.GPUS[0]).values()) / 1e6


JOINT = ("denoise_step triton graph", "denoise_step compiled graph")
TEMPLATE = ("identity_step triton graph", "identity_step compiled graph")
GOALS: Sequence[Goal] = (
    Goal("mixed attention 4096 × 8192", 480, "TFLOP/s", _attention_floor("mixed-4096"), rate("mixed-4096"), True),
    Goal("mixed attention 4096 × 8192 over the best baseline", 1.15, "×", None, against_baselines("mixed-4096"), True),
    Goal("mixed attention 1024 × 2048", 400, "TFLOP/s", _attention_floor("mixed-1024"), rate("mixed-1024"), True),
    Goal("denoise_step", 48, "ms", step_floor(2, 2), fastest(*JOINT)),
    Goal("identity_step from a template", 26, "ms", step_floor(0, 2), fastest(*TEMPLATE)),
    Goal("30-step image, joint", 1500, "ms", 30 * step_floor(2, 2), fastest("image 30 joint")),
    Goal("30-step image from a template", 900, "ms", 30 * step_floor(0, 2), fastest("image 30 template")),
    Goal("4-step image without guidance, joint", 160, "ms", 4 * step_floor(1, 1), fastest("image 4 joint")),
    Goal("4-step image without guidance from a template", 100, "ms", 4 * step_floor(0, 1), fastest("image 4 template")),
    Goal("price of an identity from a template", 1.25, "× a plain SDXL step", (ROW + MIXED_ROW) / ROW,
         ratio(("identity_step triton graph", "text_step torch graph"),
               ("identity_step compiled graph", "text_step compiled graph"))),
)  # fmt: skip


def verdicts(results: Results) -> list[str]:
    """Return one line per goal: met or missed, the value and what it was measured with, and the floor.

    Args:
        results: results of the items, by name.
    """
    lines = []
    for goal in GOALS:
        found = goal.found(results)
        floor = "" if goal.floor is None else f", {'ceiling' if goal.more else 'floor'} {goal.floor:.4g}"
        verdict = goal.verdict(found[0] if found else None)
        measured = f"{found[0]:.4g} {goal.unit} ({found[1]}), " if found else ""
        lines.append(f"{verdict:13} {goal.what}: {measured}goal {goal.words}{floor}")
    return lines


def limits(results: Results, card: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the tiles of mixed attention fill the chip, and the measured time beside what each unit needs."""
    known = next((gpu for gpu in roofline.GPUS if gpu.mark in card["name"]), None)
    for name, call in SDXL.calls.items():
        result = results.get(f"speed {name} float16", {})
        if call.op != "mixed_attention" or "contenders" not in result:
            continue
        at_once = result["resources"].get("tiles_at_once")
        if at_once:
            places = at_once * card["sms"]
            tiles, needed, filled = roofline.waves(call, result["configuration"]["block_m"], places)
            yield f"{name}: {tiles} tiles, {at_once} at once on an SM: {needed} waves, {filled:.0%} filled"
        if known is not None:
            units = [f"{unit} {least:.1f} µs" for unit, least in roofline.limits(call, known).items()]
            alone = result["contenders"][ALONE]["median"] * 1e3
            yield f"{name}: the attention kernel alone takes {alone:.1f} µs; at least: {', '.join(units)}"
