from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_process import Cli, infid_export

from infid_export.export import bundle_compilation
from infid_kernels import compile, tuning, variants

Run = tuple[Path, subprocess.CompletedProcess[str]]


def test_every_kernel_has_an_estimate() -> None:
    assert set(bundle_compilation._SECONDS) == set(compile.KERNELS)


def test_the_table_says_what_each_kernel_uses(compile_kernels_run: Run) -> None:
    folder, found = compile_kernels_run
    lines = found.stdout.splitlines()
    assert lines[0] == "Kernels"
    assert lines[1].split() == ["kernel", "target", "type", "d", "queries×keys×warps×stages", "lengths", "registers",
                                "spills", "shared", "cubin"]  # fmt: skip
    rows = [line for line in lines[2:] if line.startswith(tuple(compile.KERNELS))]
    descriptions = [json.loads(path.read_text()) for path in folder.glob("*-*.json")]
    assert len(rows) == len(descriptions)
    for each in descriptions:
        tiles = "×".join(str(each["configuration"][name]) for name in ("block_m", "block_n", "num_warps", "num_stages"))
        shown = "full blocks" if each["constants"].get("EVEN_N") else "any"
        expected = f"{each['op']} sm_90 float16 64 {tiles} {shown} {each['registers']} 0 B {each['shared_bytes']} B"
        assert any(" ".join(row.split()).startswith(expected) for row in rows), expected
    assert lines[-1].startswith(f"{folder}: {len(rows)} kernels, ")


def test_progress_says_how_long_it_takes(compile_kernels_run: Run) -> None:
    first = compile_kernels_run[1].stderr.splitlines()[0]
    assert "mean_shift sm_90 float16 d64" in first
    assert " left)" in first


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path) -> list[tuple[Any, ...]]:
    """Records the command's requests to the compiler, which returns the kernels of the session's bundle."""
    calls: list[tuple[Any, ...]] = []

    def compile_bundle(folder: Path, *given: Any) -> dict[str, Any]:
        calls.append((folder, *given[:3], given[4]))
        return {path.stem: json.loads(path.read_text()) for path in sorted(kernels_bundle.glob("mean*.json"))}

    monkeypatch.setattr(bundle_compilation, "compile_bundle", compile_bundle)
    return calls


def test_json(cli: Cli, asked: list[tuple[Any, ...]], kernels_bundle: Path) -> None:
    words = (
        "--target sm_90 sm_80 --target sm_89 --dtype bfloat16 float16 --head-size 40 64 --tuning t.json --json --quiet"
    )
    code, out, err = cli("compile-kernels", *words.split(), "-o", kernels_bundle)
    assert (code, err) == (0, "")
    assert asked == [(kernels_bundle, ["sm_90", "sm_80", "sm_89"], ["bfloat16", "float16"], [40, 64], Path("t.json"))]
    document = json.loads(out)
    assert document["bundle"] == str(kernels_bundle)
    assert document["bytes"] == sum(path.stat().st_size for path in kernels_bundle.iterdir())
    (kernel,) = document["kernels"].values()
    assert kernel["op"] == "mean_shift"
    assert set(kernel["sha256"]) == {"cubin", "ptx"}


def test_defaults(cli: Cli, asked: list[tuple[Any, ...]], kernels_bundle: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(kernels_bundle.parent)
    (kernels_bundle.parent / "kernels-bundle").symlink_to(kernels_bundle)
    code, out, _ = cli("compile-kernels", "--target", "sm_90")
    assert code == 0
    assert out.splitlines()[-1].startswith("kernels-bundle: 1 kernels")
    assert asked == [(Path("kernels-bundle"), ["sm_90"], ["float16"], [64], None)]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "required: --target"),
        (("--target", "sm_75"), "--target: invalid choice: 'sm_75' (choose from"),
        (("--target", "sm_90", "--dtype", "float32"), "--dtype: invalid choice: 'float32'"),
        (("--target", "sm_90", "--head-size", "48"), "--head-size: invalid choice: 48"),
    ],
)
def test_wrong_usage(cli: Cli, words: tuple[str, ...], problem: str) -> None:
    code, out, err = cli("compile-kernels", *words)
    assert (code, out) == (1, "")
    assert problem in err
    assert "infid-export compile-kernels --help" in err


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ((["sm_75"],), "no kernels for the target sm_75. Choose from sm_80, sm_86"),
        ((["sm_90"], ["float32"]), "no kernels for the dtype float32. Choose from float16, bfloat16"),
        ((["sm_90"], ["float16"], [48]), "no kernels for the head size 48. Choose from 32, 40"),
    ],
)
def test_the_function_rejects_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[list[Any], ...], problem: str
) -> None:
    monkeypatch.setattr(bundle_compilation, "_require_compiler", lambda: None)
    with pytest.raises(bundle_compilation.InputError, match=problem):
        bundle_compilation.compile_bundle(tmp_path / "bundle", *given)


def test_a_tuning_file_decides_the_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compile_variants(op: str, target: str, *_: Any) -> list[Any]:
        seen.append([tuning.entry(each, target, 64, 4096, True) for each in tuning.OPS])
        return []

    measured = tuning.Configuration(64, 64, 4, 3)
    entry = tuning.Entry("mixed_attention", "sm_90", 64, 0, True, measured, "measured on a GPU")
    tuning.write(tmp_path / "tuning.json", [entry])
    monkeypatch.setattr(bundle_compilation, "_require_compiler", lambda: None)
    monkeypatch.setattr(variants, "compile_variants", compile_variants)
    monkeypatch.setattr(bundle_compilation, "write_bundle", lambda folder, kernels: dict.fromkeys(kernels))
    bundle_compilation.compile_bundle(tmp_path / "bundle", ["sm_90"], tuning=tmp_path / "tuning.json")
    assert [each[0] for each in seen] == 4 * [entry]
    assert all("compiled" in each[1].evidence for each in seen)  # from the table, where nothing was measured
    bundle_compilation.compile_bundle(tmp_path / "bundle", ["sm_90"])
    assert seen[-1][0] != entry


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, r"tuning\.json contains no kernel configurations \(.*No such file"),
        ("[]", r"tuning\.json contains no kernel configurations"),
        ('{"schema_version": 2, "entries": []}', "no effect: .*json was measured on nothing, but .* for sm_90"),
    ],
)
def test_a_tuning_file_without_effect_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, problem: str
) -> None:
    monkeypatch.setattr(bundle_compilation, "_require_compiler", lambda: None)
    if text is not None:
        (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(bundle_compilation.InputError, match=problem):
        bundle_compilation.compile_bundle(tmp_path / "bundle", ["sm_90"], tuning=tmp_path / "tuning.json")


def test_an_interpreting_triton_is_rejected(tmp_path: Path) -> None:
    words = ("compile-kernels", "--target", "sm_90", "-o", str(tmp_path / "bundle"))
    found = infid_export(*words, TRITON_INTERPRET="1")
    assert found.returncode == 1
    assert "error: TRITON_INTERPRET is set" in found.stderr
    assert "fix: Run the command again with `env -u TRITON_INTERPRET`." in found.stderr
    assert "Traceback" not in found.stderr
    assert os.listdir(tmp_path) == []


def test_a_missing_triton_is_named_with_its_command(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    code, _, err = cli("compile-kernels", "--target", "sm_90", "-o", tmp_path / "bundle")
    assert code == 1
    assert "Compiling kernels needs Triton, which cannot be imported" in err
    assert 'fix: pip install "infid-export[export]"' in err


def test_a_folder_of_something_else_is_rejected_before_anything_is_compiled(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output, problem in ((tmp_path / "file", "is a file."), (tmp_path, "so it is not a kernel bundle.")):
        code, _, err = cli("compile-kernels", "--target", "sm_90", "-o", output)
        assert code == 1
        assert problem in err
