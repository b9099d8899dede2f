from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from fake_tensorrt_plugin import Registry, SymInt32, TensorDesc

from infid_engines.errors import EngineFolderError
from infid_engines.expressions import evaluate
from infid_engines.tensorrt_plugin import _TYPES, Variant, read_variants, register
from infid_export.export.plugin_nodes import OPERATIONS
from infid_kernels.compile import with_parameters
from infid_kernels.targets import DTYPES

PROGRAM = """
import sys
from collections.abc import Mapping
from pathlib import Path
from infid_kernels.variants import write_plugins
write_plugins(Path(sys.argv[1]), "sm_90", [64])
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's kernels for Hopper, compiled in a process without Triton's interpreter."""
    path = tmp_path_factory.mktemp("kernels") / "plugins-sm_90.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(path)], env=environment, check=True)
    return path


@pytest.fixture(scope="module")
def variants(file: Path) -> dict[str, list[Variant]]:
    return read_variants(file)


@pytest.fixture
def registry(variants: dict[str, list[Variant]]) -> Registry:
    made = Registry()
    register(made, variants)
    return made


def parameters(ptx: str) -> list[str]:
    found = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    assert found is not None
    return re.findall(r"\.param\s+\.(\w+)", found[1])


def test_every_node_of_the_exporter_has_its_plugin(registry: Registry) -> None:
    assert set(registry.plugins) == {f"infid::{name}" for name in OPERATIONS}
    for name, operation in OPERATIONS.items():
        plugin = registry.plugins[f"infid::{name}"]
        assert plugin.inputs == [each.name for each in operation.op_schema.inputs]
        assert plugin.outputs == len(operation.op_schema.outputs)


def test_the_entry_takes_inputs_then_integers_then_outputs(variants: dict[str, list[Variant]]) -> None:
    for op, compiled in variants.items():
        for variant in compiled:
            kinds = ["output" if a.get("output") else "integer" if a["type"] == "i32" else "input"
                     for a in variant.launch["arguments"]]  # fmt: skip
            assert kinds == sorted(kinds, key=["input", "integer", "output"].index), op
            wanted = ["u32" if a["type"] == "i32" else "u64" for a in variant.launch["arguments"]]
            assert parameters(variant.ptx) == wanted  # TensorRT passes no others, and the driver reads all of them
            assert variant.launch["scratch_pointers"] == 0
            assert f".entry {variant.launch['entry']}(" in variant.ptx


def test_without_the_pointers_that_triton_appends_the_code_still_assembles(
    variants: dict[str, list[Variant]], tmp_path: Path
) -> None:
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    for compiled in variants.values():
        source = tmp_path / "kernel.ptx"
        source.write_text(compiled[-1].ptx)
        command = [ptxas, "--gpu-name", compiled[-1].launch["ptx_target"], source, "-o", tmp_path / "kernel.cubin"]
        subprocess.run(command, check=True)


PTX = """.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1,
	.param .u64 .ptr .global .align 1 kernel_param_2
)
{
	ld.param.b32 	%r1, [kernel_param_1];
}
"""


def test_a_parameter_that_is_read_is_not_taken_away() -> None:
    assert parameters(with_parameters(PTX, 2)) == ["u64", "u32"]
    assert with_parameters(PTX, 3) == PTX
    with pytest.raises(ValueError, match="the PTX reads its parameter kernel_param_1"):
        with_parameters(PTX, 1)


def with_head_size(launch: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    arguments = [
        {**each, "shape": [*each["shape"][:-1], str(head_size)]} if len(each.get("shape", ())) == 4 else each
        for each in launch["arguments"]
    ]
    return {**launch, "arguments": arguments}


def test_tactics_are_of_the_tensors_head_size(variants: dict[str, list[Variant]]) -> None:
    name = "merged_cross_attention"
    wide = [Variant(with_head_size(each.launch, 128), each.ptx) for each in variants[name]]
    registry = Registry()
    register(registry, {name: [*variants[name], *wide]})
    plugin = registry.plugins[f"infid::{name}"]
    assert plugin.autotune is not None
    (narrow,), (other,) = (plugin.autotune(*described(plugin.inputs, 2, 10, 1024, 261, 77, d), ()) for d in (64, 128))
    assert narrow.tactics
    assert other.tactics == [tactic + len(wide) for tactic in narrow.tactics]
    with pytest.raises(
        EngineFolderError, match=r"infid::merged_cross_attention has no kernel for q \[2, 1024, 10, 80\]"
    ):
        plugin.autotune(*described(plugin.inputs, 2, 10, 1024, 261, 77, 80), ())


def test_two_tactics_for_any_shape_one_of_them_within_48_kb(registry: Registry, variants: dict[str, Any]) -> None:
    for name in ("mixed_attention", "merged_cross_attention"):
        plugin = registry.plugins[f"infid::{name}"]
        for identity, text in ((4096, 4096), (1024, 1024), (261, 77), (-1, 77), (-1, -1)):
            inputs = described(plugin.inputs, 2, 10, 4096, identity, text)
            assert plugin.autotune is not None
            (combination,) = plugin.autotune(*inputs, (TensorDesc((1,), "fp16"),))
            shared = [variants[name][tactic - 1].launch["shared_bytes"] for tactic in combination.tactics]
            even_n = [variants[name][tactic - 1].launch["constants"]["EVEN_N"] for tactic in combination.tactics]
            assert len(shared) >= 2
            assert min(shared) <= 49152
            assert any(even_n) == (identity % 128 == text % 128 == 0)
            assert combination.types == ["FP16"] * 5 + ["FP32"] * 2 + ["FP16"]


def described(
    names: list[str], rows: int, heads: int, queries: int, identity: int, text: int, d: int = 64
) -> list[TensorDesc]:
    lengths = {"q": queries, "k_id": identity, "v_id": identity, "k_t": text, "v_t": text}
    return [
        TensorDesc((rows, lengths[name], heads, d), "fp16")
        if name in lengths
        else TensorDesc((rows, heads, 16, d) if name.startswith("shift") else (rows,), "fp32")
        for name in names
    ]


def test_launches_are_the_launchers_own(registry: Registry, variants: dict[str, list[Variant]]) -> None:
    """Compares grid and integers of every tactic, on many shapes, with PyTorch's tensors and the kernels' code."""
    draw = random.Random(0)
    for name, compiled in variants.items():
        plugin = registry.plugins[f"infid::{name}"]
        for _ in range(50):
            rows, heads = draw.randint(1, 4), draw.randint(1, 20)
            queries, identity, text = (draw.randint(1, 5000) for _ in range(3))
            lengths = {"q": queries, "k": identity, "v": identity, "kt": text, "vt": text, "o": queries}
            tensors = {
                ending: torch.empty(rows, length, heads, 64, device="meta").transpose(1, 2)
                for ending, length in lengths.items()
            }
            sizes = {"rows": rows, "heads": heads, "queries": queries, "identity_length": identity, "text_length": text}
            for tactic, variant in enumerate(compiled, 1):
                inputs = described(plugin.inputs, rows, heads, queries, identity, text)
                assert plugin.aot_impl is not None
                entry, ptx, launch, integers = plugin.aot_impl(*inputs, (), tactic)
                assert (entry, ptx) == (variant.launch["entry"], variant.ptx)
                first = 16 if name.endswith("_shift") else -(-queries // variant.launch["configuration"]["block_m"])
                assert (launch.grid_x.value, launch.grid_y.value, launch.grid_z.value) == (first, rows * heads, 1)
                assert launch.block_x == 32 * variant.launch["configuration"]["num_warps"]
                for argument, found in zip(variant.integers, integers.values, strict=True):
                    if argument["name"] in sizes:
                        expected = sizes[argument["name"]]
                    else:
                        ending, axis = argument["name"].removeprefix("stride_")[:-1], "bhn".index(argument["name"][-1])
                        expected = tensors[ending].stride(axis)
                    assert found.value == expected, argument["name"]


def test_outputs_are_described(registry: Registry) -> None:
    plugin = registry.plugins["infid::mixed_attention"]
    out = plugin.describe(*described(plugin.inputs, 2, 10, 4096, 4096, 1024))
    assert (out.shape, out.dtype) == ((2, 4096, 10, 64), "fp16")
    plugin = registry.plugins["infid::mean_shift"]
    shifts = plugin.describe(*described(plugin.inputs, 2, 10, 4096, 4096, 1024))
    assert [(each.shape, each.dtype) for each in shifts] == [((2, 10, 16, 64), "fp32")] * 2


def test_an_operation_that_nobody_knows_is_registered_from_its_description() -> None:
    launch = {
        "op": "fold", "entry": "fold_kernel", "grid": ["(width + 31) // 32", "planes", "1"], "block": [64, 1, 1],
        "shared_bytes": 0, "multiples": {"width": 32},
        "arguments": [
            {"name": "x", "type": "*bf16", "output": False, "shape": ["planes", "width", "3"]},
            {"name": "extent", "type": "i32", "value": "planes * width"},
            {"name": "y", "type": "*bf16", "output": True, "shape": ["width", "7", "planes"]},
        ],
    }  # fmt: skip
    registry = Registry()
    register(registry, {"fold": [Variant(launch, "// ptx")]})
    plugin = registry.plugins["infid::fold"]
    assert plugin.autotune is not None and plugin.aot_impl is not None
    x = TensorDesc((2, 64, 3), "bf16")
    assert (plugin.describe(x).shape, plugin.describe(x).dtype) == ((64, 7, 2), "bf16")
    assert [each.tactics for each in plugin.autotune(x, ())] == [[1]]
    _, _, params, integers = plugin.aot_impl(x, (), 1)
    assert (params.grid_x.value, params.grid_y.value, integers.values[0].value) == (2, 2, 128)
    for shape in ((2, 65, 3), (2, -1, 3), (2, 64, 4)):
        with pytest.raises(EngineFolderError, match=r"infid::fold has no kernel for x \[2, "):
            plugin.autotune(TensorDesc(shape, "bf16"), ())


def test_plugins_take_every_type_that_kernels_are_compiled_for() -> None:
    assert set(_TYPES) == {f"*{name}" for name in (*DTYPES.values(), "fp32")}


SPOILED = {
    "truncated": lambda text: text[:-200],
    "another version": lambda text: text.replace('"schema_version": 3', '"schema_version": 9', 1),
    "another form": lambda _: "[]",
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_broken_file_is_rejected(file: Path, tmp_path: Path, how: str) -> None:
    broken = tmp_path / "plugins-sm_90.json"
    broken.write_text(SPOILED[how](file.read_text()))
    with pytest.raises(EngineFolderError, match=r"plugins-sm_90\.json does not contain kernels"):
        read_variants(broken)


def test_expressions() -> None:
    names = {"queries": 300, "rows": 2, "heads": 10}
    assert evaluate("(queries + 128 - 1) // 128", names) == 3
    assert evaluate("rows * heads", names) == 20
    assert evaluate("16", names, SymInt32).value == 16
    for bad in ("queries / 2", "__import__('os')", "queries.real", "unknown + 1", "1 +", "queries ** 2", "1.5"):
        with pytest.raises(ValueError, match="is not an expression"):
            evaluate(bad, names)


def test_the_file_is_plain_json(file: Path) -> None:
    document = json.loads(file.read_text())
    assert {each["launch"]["architecture"] for each in document["kernels"]} == {"sm_90"}
