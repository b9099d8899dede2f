from __future__ import annotations

from benchmarks import template_speed


def test_the_table_has_every_ratio() -> None:
    document = {
        "ratio": {"x / y": 0.5}, "rounds": 9, "machine": "2 cores", "bytes_per_step": 917_500,
        "bytes_per_step_in_8_bits": 240_000, "features_snr_db": 45.1, "image_psnr_db": 75.0, "model": "demo",
        "steps": 10,
    }  # fmt: skip
    drawn = template_speed.table([document, {**document, "model": "large", "ratio": {"x / y": 0.7}}])
    assert "| x / y | 0.5 | 0.7 |" in drawn.splitlines()
    assert "demo: medians of 9 rounds on 2 cores. A template takes 0.92 MB per step in fp32 and 0.24 MB in 8" in drawn
