from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bundle_parts import Compiled, compiled

from infid_engines.errors import EngineFolderError
from infid_engines.kernel_bundle import INDEX, KernelBundle, kernel_name, write_bundle
from infid_kernels import tuning, variants
from infid_kernels.compile import CompiledKernel, compile_kernel, entry_parameters, ptx_target
from infid_kernels.sass import MachineCode


@pytest.fixture
def copy(kernels_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(kernels_bundle, tmp_path / "bundle"))


def bundle(folder: Path, *kernels: Compiled) -> KernelBundle:
    write_bundle(folder, kernels)
    return KernelBundle.load(folder)


def test_a_bundle_holds_every_form_of_every_operation(kernels_bundle: Path) -> None:
    found = KernelBundle.load(kernels_bundle).launches
    forms = {(each["op"], each["constants"].get("EVEN_N")) for each in found.values()}
    attention = {(op, even_n) for op in tuning.OPS for even_n in (True, False)}
    assert forms == attention | {("mean_shift", None), ("value_shift", None)}
    for op, even_n in forms:
        mine = [each for each in found.values() if (each["op"], each["constants"].get("EVEN_N")) == (op, even_n)]
        assert min(each["shared_bytes"] for each in mine) <= 49152
        if op in tuning.OPS:
            entry = tuning.entry(op, "sm_90", 64, 0, bool(even_n), only="plain")
            assert entry is not None
            tuned = [each["configuration"] for each in mine if 0 in each["queries"]]
            assert tuned == [entry.configuration.to_dict()]
        assert all(each["stack_bytes"] == 0 for each in mine)


def test_nothing_is_in_a_bundle_twice(kernels_bundle: Path) -> None:
    cubins = [path.read_bytes() for path in kernels_bundle.glob("*.cubin")]
    assert len(cubins) == len(set(cubins)) == len(KernelBundle.load(kernels_bundle).index)
    names = {path.stem for path in kernels_bundle.iterdir()} - {"bundle"}
    assert names == set(KernelBundle.load(kernels_bundle).index)


def test_descriptions_agree_with_the_code(kernels_bundle: Path) -> None:
    for name, launch in KernelBundle.load(kernels_bundle).launches.items():
        ptx = (kernels_bundle / f"{name}.ptx").read_text()
        kinds = ["integer" if a["type"] == "i32" else "output" if a["output"] else "input" for a in launch["arguments"]]
        assert kinds == sorted(kinds, key=["input", "integer", "output"].index), name  # TensorRT's rule
        wanted = ["u32" if kind == "integer" else "u64" for kind in kinds]
        assert entry_parameters(ptx) == wanted + ["u64"] * launch["scratch_pointers"]
        assert f".entry {launch['entry']}(" in ptx
        assert launch["entry"].encode() in (kernels_bundle / f"{name}.cubin").read_bytes()
        assert ptx_target(ptx) == launch["ptx_target"] == "sm_90a"
        assert f".reqntid {launch['block'][0]}\n" in ptx


def test_no_path_of_the_compiling_machine_is_written(kernels_bundle: Path) -> None:
    package = str(Path(tuning.__file__).parent).encode()
    assert [path.name for path in kernels_bundle.iterdir() if package in path.read_bytes()] == []


TWICE = """
import sys
from pathlib import Path
from infid_engines.kernel_bundle import write_bundle
from infid_kernels.compile import compile_kernel
from infid_kernels.mean_shift import CONFIGURATION
from infid_kernels.tuning import CANDIDATES
from infid_kernels.variants import _chosen_for
kernels = [compile_kernel("mean_shift", "sm_90", 64, CONFIGURATION),
           compile_kernel("mixed_attention", "sm_90", 64, CANDIDATES[-1])]
write_bundle(Path(sys.argv[1]), [_chosen_for(kernel, [0]) for kernel in kernels])
"""


def test_two_machines_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):  # each compiles on its own, without a shared cache
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
        environment["TRITON_CACHE_DIR"] = str(tmp_path / f"cache-{name}")
        subprocess.run([sys.executable, "-c", TWICE, str(tmp_path / name)], env=environment, check=True)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert len(written[0]) == 7
    assert written[0] == written[1]


@pytest.mark.parametrize("ending", ["cubin", "ptx", "json"])
def test_a_flipped_bit_is_rejected(copy: Path, ending: str) -> None:
    path = sorted(copy.glob(f"mixed*.{ending}"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineFolderError, match=f"{path.name} has changed: its sha256 is") as error:
        KernelBundle.load(copy)
    assert "infid-export compile-kernels --target" in error.value.fix


def test_code_that_changes_after_loading_is_rejected(copy: Path) -> None:
    loaded = KernelBundle.load(copy)
    for path in copy.glob("*.cubin"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(EngineFolderError, match="has changed"):
        loaded.find("mean_shift", "sm_90", "float16", 64, (77, 77))


@pytest.mark.parametrize("name", [INDEX, "mean_shift-sm_90-float16-d64-1x128x4x2.json"])
def test_a_truncated_description_is_rejected(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EngineFolderError, match=f"{name} (cannot be read|has changed)"):
        KernelBundle.load(copy)


def test_a_missing_file_another_version_and_no_bundle_are_rejected(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineFolderError, match=r"is not a kernel bundle: it has no bundle\.json"):
        KernelBundle.load(tmp_path)
    index = json.loads((copy / INDEX).read_text())
    (copy / INDEX).write_text(json.dumps(index | {"schema_version": 9}))
    with pytest.raises(EngineFolderError, match="has schema version 9, but this infid-export reads version 4"):
        KernelBundle.load(copy)
    (copy / INDEX).write_text(json.dumps(index))
    sorted(copy.glob("*.ptx"))[0].unlink()
    with pytest.raises(EngineFolderError, match=r"\.ptx cannot be read \(No such file or directory\)"):
        KernelBundle.load(copy)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_nothing_else_is_overwritten(tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(EngineFolderError, match="is a file" if what == "file" else r"files but no bundle\.json"):
        write_bundle(target, [compiled()])
    assert (target if what == "file" else target / "mine").read_text() == "mine"


def test_an_interrupted_bundle_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_bundle(folder, [compiled()])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def kernels() -> Iterator[Compiled]:
        yield compiled(architecture="sm_90")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(folder, kernels())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    write_bundle(folder, [compiled(architecture="sm_90")])
    assert set(KernelBundle.load(folder).index) == {kernel_name(compiled(architecture="sm_90").launch)}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_two_kernels_of_one_name_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two kernels are called"):
        write_bundle(tmp_path / "bundle", [compiled(), compiled()])


@pytest.mark.parametrize(
    ("has", "gpu", "origin", "form"),
    [
        (("sm_80", "sm_86", "sm_90"), "sm_86", "sm_86", "cubin"),
        (("sm_80", "sm_86"), "sm_89", "sm_86", "cubin"),  # newest of the family
        (("sm_80", "sm_89"), "sm_86", "sm_80", "cubin"),  # not a newer one
        (("sm_80", "sm_89", "sm_120"), "sm_90", "sm_89", "ptx"),  # the newest that the driver can compile
        (("sm_80", "sm_90"), "sm_100", "sm_80", "ptx"),  # sm_90a runs only on sm_90, even as PTX
        (("sm_80", "sm_100"), "sm_103", "sm_80", "ptx"),  # and sm_100a only on sm_100
    ],
)  # fmt: skip
def test_the_code_that_a_gpu_can_run(tmp_path: Path, has: tuple[str, ...], gpu: str, origin: str, form: str) -> None:
    loaded = bundle(tmp_path / "bundle", *(compiled(architecture=name) for name in has))
    kernel = loaded.find("mixed_attention", gpu, "float16", 64, (64, 64))
    assert (kernel.description["architecture"], kernel.form) == (origin, form)
    assert kernel.code.startswith(b"// mixed" if form == "ptx" else f"mixed_attention {origin}".encode())
    assert gpu in kernel.choice and origin in kernel.choice


@pytest.mark.parametrize(
    ("call", "says", "command"),
    [
        (("mixed_attention", "sm_100", "float16", 64), "runs on sm_100, only for sm_90", "--target sm_90 sm_100 "),
        (("mixed_attention", "sm_80", "float16", 64), "runs on sm_80, only for sm_90", "--target sm_80 sm_90 "),
        (("mixed_attention", "sm_90", "bfloat16", 64), "in bfloat16", "--dtype float16 bfloat16 "),
        (("mixed_attention", "sm_90", "float16", 128), "with head size 128", "--head-size 64 128 "),
    ],
)
def test_what_a_bundle_lacks_is_named_with_the_command_that_makes_it(
    tmp_path: Path, call: tuple[str, str, str, int], says: str, command: str
) -> None:
    loaded = bundle(tmp_path / "bundle", compiled(architecture="sm_90"))
    with pytest.raises(EngineFolderError) as error:
        loaded.find(*call, (64, 64))
    assert says in error.value.problem
    assert command in error.value.fix
    assert f"-o {tmp_path / 'bundle'}`" in error.value.fix


def test_shared_memory_can_be_limited(kernels_bundle: Path) -> None:
    loaded = KernelBundle.load(kernels_bundle)
    for op in tuning.OPS:
        for lengths, even_n in (((4096, 4096), True), ((261, 77), False)):
            for limit in (None, 49152):
                kernel = loaded.find(op, "sm_90", "float16", 64, lengths, shared_limit=limit).description
                assert kernel["constants"]["EVEN_N"] == even_n
                assert limit is None or kernel["shared_bytes"] <= limit
    with pytest.raises(EngineFolderError, match="within 1000 bytes of shared memory"):
        loaded.find("mixed_attention", "sm_90", "float16", 64, (64, 64), shared_limit=1000)


def test_find_chooses_what_the_launcher_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has several thresholds, one configuration at two of them, and forms that need a small one."""
    large, middle, small = (tuning.CANDIDATES[index] for index in (0, 4, 10))  # 128, 64 and 32 keys at once
    rows = [
        tuning.Entry(op, "sm_90", 64, queries, even_n, configuration, "made up")
        for op in tuning.OPS
        for queries, even_n, configuration in (
            (0, True, middle), (1000, True, large), (4000, True, middle), (0, False, small), (2000, False, large)
        )
    ]  # fmt: skip
    monkeypatch.setattr(tuning, "_measured", rows)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def compile_kernel(
        op: str, architecture: str, d: int, configuration: tuning.Configuration, dtype: str, even_n: bool = False
    ) -> CompiledKernel:
        tiles = (configuration.block_m, configuration.block_n, configuration.num_warps, configuration.num_stages)
        shared = 1000 * configuration.block_n
        made = compiled(op, architecture, tiles=tiles, even_n=even_n if op in tuning.OPS else None, shared=shared)
        return CompiledKernel(made.ptx, made.cubin, made.launch)

    monkeypatch.setattr(variants, "compile_kernel", compile_kernel)
    monkeypatch.setattr(variants, "read_machine_code", lambda cubin: MachineCode(128, 0, {}))
    made = [kernel for op in tuning.OPS for kernel in variants.compile_variants(op, "sm_90", 64)]
    assert [kernel.launch["queries"] for kernel in made] == 2 * [[0, 4000], [1000], [], [2000], [0], []]
    write_bundle(tmp_path / "bundle", made)
    loaded = KernelBundle.load(tmp_path / "bundle")
    seen = set()
    for op in tuning.OPS:
        for queries in (0, 1, 999, 1000, 1999, 2000, 3999, 4000, 9000):
            for lengths in ((128, 256), (64, 128), (32, 64), (63, 128), (0, 77), (77, 261)):
                device = torch.device("cuda")
                configuration, even_n = tuning.choose(op, device, 64, queries, lengths)
                found = loaded.find(op, "sm_90", "float16", 64, lengths, queries).description
                assert found["configuration"] == configuration.to_dict(), (op, queries, lengths)
                assert found["constants"]["EVEN_N"] == even_n
                seen.add((configuration, even_n))
    assert len(seen) == 4
    assert loaded.find(op, "sm_90", "float16", 64, (64, 64), 4000, 49152).description["constants"]["BLOCK_N"] == 32


def test_forms_that_need_more_than_sizes_are_not_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle or plugin cannot make descriptors or call a library, so it gets the best plain kernel."""
    best, plain = tuning.Configuration(64, 128, 4, 2, descriptors=True), tuning.Configuration(128, 64, 8, 3)
    rows = [
        tuning.Entry("mixed_attention", "sm_90", 64, 0, even_n, choice, "made up")
        for even_n in (True, False)
        for choice in (tuning.Library("cudnn"), best, plain)
    ]
    monkeypatch.setattr(tuning, "_measured", rows)
    asked = []

    def compile_kernel(
        op: str, architecture: str, d: int, configuration: tuning.Configuration, dtype: str, even_n: bool = False
    ) -> CompiledKernel:
        asked.append(configuration)
        made = compiled(op, architecture, even_n=even_n)
        return CompiledKernel(made.ptx, made.cubin, made.launch)

    monkeypatch.setattr(variants, "compile_kernel", compile_kernel)
    monkeypatch.setattr(variants, "read_machine_code", lambda cubin: MachineCode(128, 0, {}))
    made = list(variants.compile_variants("mixed_attention", "sm_90", 64))
    assert asked == 2 * [plain, tuning.CANDIDATES[0]]
    assert [kernel.launch["queries"] for kernel in made] == 2 * [[0], []]


def test_a_launch_description_is_of_plain_forms_alone() -> None:
    with pytest.raises(ValueError, match="has no descriptors"):
        compile_kernel("mixed_attention", "sm_90", 64, tuning.Configuration(64, 128, 4, 2, descriptors=True))


def test_a_bundle_needs_neither_triton_nor_torch(kernels_bundle: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "sys.modules.update(dict.fromkeys(('torch', 'triton', 'infid_kernels'), None))\n"
        "from infid_engines.kernel_bundle import KernelBundle\n"
        "kernel = KernelBundle.load(Path(sys.argv[1])).find('mean_shift', 'sm_90', 'float16', 64, (77, 77))\n"
        "sizes = {'rows': 2, 'heads': 10, 'identity_length': 77, 'text_length': 77}\n"
        "pointers = {a['name']: 4096 for a in kernel.description['arguments'] if a['type'] != 'i32'}\n"
        "print(kernel.grid(sizes), len(kernel.arguments(pointers, sizes).values))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)}
    command = [sys.executable, "-c", program, str(kernels_bundle)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "(16, 20, 1) 24\n"
