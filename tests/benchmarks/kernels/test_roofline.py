from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.kernels import roofline
from infid_kernels.measure import SDXL_CALLS, Call

H100, H200, L40S, RTX_4090 = roofline.GPUS
MIXED = SDXL_CALLS["mixed-4096"]


def test_the_page_is_drawn_from_the_arithmetic() -> None:
    assert roofline.drawn() == roofline.PAGE.read_text(), "run `python benchmarks/kernels/roofline.py`"


def test_the_work_of_a_call_counted_by_hand() -> None:
    call = Call("mixed_attention", 1, 2, 3, 5, 7, d=4)
    assert roofline.exponentials(call) == 2 * 3 * 12
    assert roofline.flops(call) == 2 * (2 * 3 * 12 * 4) * 2  # two products, two heads
    assert roofline.least_bytes(call) == 2 * 2 * 4 * (3 + 12 + 12 + 3)
    assert roofline.hidden_shift_bytes(call) == 2 * (12 * 8 + 2 * 8 * 8)
    assert roofline.padded(call, 4) == 16 / 12


def test_the_floor_of_the_largest_call_on_an_h100() -> None:
    needed = roofline.limits(MIXED, H100)
    assert needed["products"] == pytest.approx(171.8e9 / 989.4e12 * 1e6, rel=1e-3)
    assert needed["memory"] == pytest.approx(62.9e6 / 3.35e12 * 1e6, rel=1e-3)
    assert needed["exponentials"] == pytest.approx(needed["products"])  # d = 64 on Hopper: 256/4096 = 1/16 clocks
    assert roofline.limits(MIXED, L40S)["exponentials"] == pytest.approx(roofline.limits(MIXED, L40S)["products"] / 4)


@pytest.mark.parametrize(("gpu", "boost"), [(H100, 1.83), (H200, 1.83), (L40S, 2.52), (RTX_4090, 2.52)])
def test_the_rates_agree_with_the_clocks(gpu: roofline.Gpu, boost: float) -> None:
    assert gpu.gigahertz == pytest.approx(boost, rel=0.02)  # the L40S's datasheet gives 1 % less than its boost clock


@pytest.mark.parametrize(
    ("block_m", "expected"), [(128, (320, 3, 320 / 396)), (64, (640, 5, 640 / 660))], ids=["128", "64"]
)
def test_waves_of_the_1024_level(block_m: int, expected: tuple[int, int, float]) -> None:
    assert roofline.waves(SDXL_CALLS["mixed-1024"], block_m, 132) == pytest.approx(expected)


def test_programs_that_an_sm_holds() -> None:
    assert roofline.at_once(4, 147, 74752) == 3  # 65536 / (152 · 128) and 233472 / 75776, both 3
    assert roofline.at_once(4, 243, 74752) == 2
    assert roofline.at_once(4, 147, 114688) == 2
    assert roofline.at_once(8, 171, 1) == 1


def test_a_result_replaces_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "RESULTS", tmp_path)
    assert roofline.measured("mixed-4096", H100) == roofline.NOT_MEASURED
    for date, median in (("2026-11-23T10:00", 0.4), ("2026-11-24T10:00", 0.36)):
        ours = {"median": median, "teraflops": 477, "of_matrix_ceiling": 0.7}
        item = {"state": "measured", "result": {"contenders": {"infid_kernels": ours}}}
        document = {"gpu": {"name": "NVIDIA H100 80GB HBM3"}, "date": date, "items": {"tuned mixed-4096 float16": item}}
        (tmp_path / f"gpu-{date[:10]}.json").write_text(json.dumps(document))
    assert roofline.measured("mixed-4096", H100) == "360.0 µs, 477 TFLOP/s, 70% of the run's matrix product"
    assert roofline.measured("mixed-4096", H200) == roofline.NOT_MEASURED
    assert roofline.drawn() != roofline.PAGE.read_text()


def test_the_sentences_agree_with_the_arithmetic() -> None:
    text = " ".join(roofline.PAGE.read_text().split())
    needed = roofline.limits(MIXED, H100)
    one_after_the_other = needed["products"] + needed["exponentials"]
    rate = roofline.flops(MIXED) / one_after_the_other / 1e6
    assert f"{one_after_the_other:.0f} µs at 4096 tokens, {rate:.0f} TFLOP/s" in text
    keys_and_values = 2 * sum(MIXED.lengths) * MIXED.rows * MIXED.heads * MIXED.d * roofline.ELEMENT
    assert f"{2 * keys_and_values / 1e6:.0f} MB more at 4096 tokens" in text
    assert f"beside the {roofline.least_bytes(MIXED) / 1e6:.0f} MB of the whole call" in text
    merge = 4 * MIXED.rows * MIXED.heads * MIXED.queries * MIXED.d * roofline.ELEMENT  # two read, one more, one written
    assert f"({merge / 1e6:.0f} MB at 4096 tokens, {merge / H100.terabytes / 1e6:.1f} µs of an H100's" in text
    level = SDXL_CALLS["mixed-1024"]
    fills = [roofline.waves(level, block_m, 132)[2] for block_m in (128, 64)]
    assert (
        "tiles of 128 queries fill {:.0%} of a Hopper chip, tiles of 64 fill {:.0%}".format(*fills).replace("%", " %")
        in text
    )
    assert f"{roofline.shift_bytes(level) / 1e6:.0f} MB needed" in text
