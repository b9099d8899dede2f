"""Engine folders: the manifest is read, or rejected with the same sentences, as in Python."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from both import cpp_sentences, printed, python_sentences
from cpp_library import Probe
from mutations import damaged, damaged_json
from tiny_engines import write_folder

from infid_engines.documents import sealed
from infid_engines.errors import InfidError
from infid_engines.manifest import MANIFEST, Manifest, is_inside, verify_file
from infid_export.runtime.denoise import image_size
from infid_export.runtime.requirements import require_usable
from infid_export.runtime.template import text_model_id

Document = dict[str, Any]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


@pytest.fixture(scope="module")
def document(engines: Path) -> Document:
    content: Document = json.loads((engines / MANIFEST).read_text())
    return content


def usable(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    require_usable(manifest)
    return manifest


def facts(manifest: Manifest) -> Document:
    """Return what the probe prints."""
    usual, schedule = manifest.defaults, manifest.scheduler
    return {
        "model": [manifest.model["id"], manifest.model["name"], text_model_id(manifest), manifest.precision],
        "sizes": [manifest.height, manifest.width, manifest.batch, manifest.people, manifest.identity_tokens,
                  manifest.vae_scale_factor],
        "graphs": {name: [each.file, list(each.weights), specs(each.inputs), specs(each.outputs)]
                   for name, each in manifest.graphs.items()},
        "engines": [[each.graph, each.backend, each.target, each.file, bool(each.flags.get("strip"))]
                    for each in manifest.engines],
        "files": {name: [each.sha256, each.size] for name, each in manifest.files.items()},
        "defaults": [usual[name] for name in ("steps", "guidance", "style_strength", "identity_strength",
                                              "negative_prompt", "sampler", "spacing")] + [usual.get("preset")],
        "scheduler": [*(schedule[name] for name in (
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "clip_sample", "steps_offset",
            "timestep_spacing", "set_alpha_to_one", "prediction_type", "rescale_betas_zero_snr")),
            schedule.get("original_inference_steps", 50), schedule.get("distilled_timesteps", [])],
        "faces": [manifest.faces[name] for name in ("detector", "detector_path", "recognizer_path")],
    }  # fmt: skip


def specs(given: Any) -> list[Any]:
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in given]


def written(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / MANIFEST).write_bytes(content)
    return folder


def forged(folder: Path, document: Document) -> Path:
    """Write a folder that has only a manifest, with a fresh seal."""
    return written(folder, json.dumps(sealed(document)).encode())


def same_sentences(folders: list[Path], cpp_probe: Probe) -> int:
    """Compare what is wrong with folders, and return how many are rejected."""
    expected = [python_sentences(lambda folder=folder: usable(folder)) for folder in folders]  # type: ignore[misc]
    found = [json.loads(line) for line in cpp_probe("manifests", *folders).stdout.splitlines()]
    assert [each and tuple(each) for each in found] == expected
    return sum(each is not None for each in expected)


def test_a_manifest_is_read_as_in_python(engines: Path, cpp_probe: Probe) -> None:
    assert printed(cpp_probe("manifest", engines)) == facts(usable(engines))


def test_numbers_and_texts_keep_their_seal(tmp_path: Path, document: Document, cpp_probe: Probe) -> None:
    odd = {"é\ud800\U0001f642\x7f": [1e-7, -0.0, 10**30, 1e22, 0.1, {"b": None, "a": True}], "": '\u2028/\\"\n'}
    ranges = json.loads(json.dumps(document))
    ranges["graphs"]["denoise_step"]["inputs"][0]["shape"] = [[0, 0, 0], [1, 2, 4], 0, 7]
    ranges["graphs"]["denoise_step"]["weights"] = ["onnx/vae_decoder.onnx"]
    ranges["engines"][0]["flags"] = {"strip": True}
    ranges["defaults"]["preset"] = "dmd2-4"
    ranges["scheduler"]["distilled_timesteps"] = [999, 749, 499, 249]
    folder = forged(tmp_path / "odd", {**ranges, "options": odd, "notes": ["a", "é"]})
    found, expected = printed(cpp_probe("manifest", folder)), facts(usable(folder))
    assert found["graphs"]["denoise_step"][2][0][2] == [0, [1, 2, 4], 0, 7]
    expected["graphs"]["denoise_step"][2][0][2] = [0, [1, 2, 4], 0, 7]
    assert found == expected


def removed(*path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return change


def given(*path: Any) -> Callable[[Document], None]:
    """Set the entry that the first arguments lead to, to the last."""

    def change(document: Any) -> None:
        for name in path[:-2]:
            document = document[name]
        document[path[-2]] = path[-1]

    return change


SPEC = ("graphs", "denoise_step", "inputs", 0)
DAMAGES = [
    removed("batch"), removed("graphs", "denoise_step", "file"), removed("model", "id"), removed("files"),
    removed("defaults", "steps"), removed("scheduler", "beta_end"), removed("defaults", "spacing"),
    given("odd", 1), given("zzz", 1), given("graphs", "denoise_step", "odd'", 1), given("height", "64"),
    given("height", 64.0), given("height", True), given("height", None), given("height", 10**18), given("height", 0),
    given("width", 65537), given("batch", -(10**30)), given("people", [1]), given("identity_tokens", {}),
    given("vae_scale_factor", 0), given("graphs", []), given("graphs", "denoise_step", "text" * 20), given("engines",
    {}),
    given("engines", [3]), given("engines", 0, "tool_versions", {"a": 1}), given("files", "onnx/x", 3),
    given("model", "name", 3), given("model", None), given("precision", 16), given("notes", ["a", 1]), given("notes",
    "a"),
    given("options", 1e16), given("options", "it's\n\u200b"), given(*SPEC, "dtype", "float64"),
    given(*SPEC, "dtype", "it's"), given(*SPEC, "shape", 3), given(*SPEC, "shape", ["a"]),
    given(*SPEC, "shape", [[1, "a", 3]]), given(*SPEC, "shape", [[1, 2]]), given(*SPEC, "shape", [[3, 2, 1]]),
    given(*SPEC, "shape", [-1]), given(*SPEC, "shape", [[-1, 2, 3]]), given(*SPEC, "shape", [[]]), given(*SPEC,
    "name", "it"),
    given(*SPEC, "shape", [True]), given("files", "onnx/vae_decoder.onnx", "size", 1.5),
    given("files", "onnx/vae_decoder.onnx", "seconds", 1), given("files", "onnx/vae_decoder.onnx", "seconds", 10**17),
    given("files", "onnx/vae_decoder.onnx", "seconds", -(2**53)), given("files", "onnx/vae_decoder.onnx",
    "peak_bytes", 1.0),
    given("engines", 0, "file", "none"), given("graphs", "vae_decoder", "weights", ["a" * 60]),
    *(given("graphs", "vae_decoder", "file", name) for name in (
        "../x", "/etc/passwd", "onnx/../onnx/vae_decoder.onnx", "onnx//vae_decoder.onnx", "./a", "", ".", "a/",
        "a\\b", "a\0b",
        "a" * 256, "é" * 128, "it's", 'a"\'')),
    given("defaults", "steps", 0), given("defaults", "steps", "5"), given("defaults", "steps", 5.0),
    given("defaults", "sampler", "heun"), given("defaults", "sampler", None), given("defaults", "spacing", 3),
    given("defaults", "negative_prompt", []), given("defaults", "guidance", "x"), given("defaults", "guidance", None),
    given("defaults", "more", 1), given("scheduler", "num_train_timesteps", 1),
    given("scheduler", "num_train_timesteps", 10**6), given("scheduler", "num_train_timesteps", 1e3),
    given("scheduler", "beta_start", 0), given("scheduler", "beta_end", 1), given("scheduler", "beta_start", 0.5),
    given("scheduler", "steps_offset", 2), given("scheduler", "steps_offset", False),
    given("scheduler", "beta_schedule", 3), given("scheduler", "clip_sample", 1), given("scheduler", "clip_sample", ""),
    given("scheduler", "clip_sample", 0.0), given("scheduler", "prediction_type", ["it's", None, True, 0.5, {"a": {}}]),
    given("scheduler", "timestep_spacing", None), given("scheduler", "original_inference_steps", 50.0),
    given("defaults", "preset", 4), given("defaults", "preset", "lightning-4"), given("defaults", "preset", None),
    *(given("scheduler", "distilled_timesteps", timesteps) for timesteps in (
        [], [399], None, 3, "399", [1000], [3.0], [True], [10**30], [-(10**30)], [5, 5], [4, 5], [-1], [5, None])),
    given("graphs", "denoise_step", "inputs", []), given("schema_version", 2), given("schema_version", "3"),
    given("schema_version", 3.0), given("schema_version", True), given("schema_version", ["a"]),
    given("schema_version", None), removed("schema_version"), given("faces", {}), given("faces", "recognizer_path", ""),
]  # fmt: skip


def test_wrong_entries_have_the_same_sentences(tmp_path: Path, document: Document, cpp_probe: Probe) -> None:
    folders = []
    for index, damage in enumerate(DAMAGES):
        odd = json.loads(json.dumps(document))
        damage(odd)
        folders.append(forged(tmp_path / str(index), odd))
    assert same_sentences(folders, cpp_probe) == len(DAMAGES) - 10  # these leave it usable


def test_random_wrong_entries_have_the_same_sentences(tmp_path: Path, document: Document, cpp_probe: Probe) -> None:
    random, folders = Random(3), []
    step = {"denoise_step": document["graphs"]["denoise_step"]}
    content = {**document, "engines": document["engines"][:1], "graphs": step}
    for index in range(300):
        odd = damaged_json(random, content)
        folder = forged(tmp_path / str(index), {**odd, "schema_version": 3} if isinstance(odd, dict) else {})
        try:
            usable(folder)
        except (InfidError, RecursionError):
            folders.append(folder)
        except Exception:  # entries that Python does not check here
            continue
        else:
            folders.append(folder)
    assert same_sentences(folders, cpp_probe) > 100


def test_changed_bytes_have_the_same_sentences(tmp_path: Path, engines: Path, cpp_probe: Probe) -> None:
    random, content = Random(4), (engines / MANIFEST).read_bytes()
    cases = [content[: len(content) * share // 50] for share in range(50)]
    cases += [damaged(random, content) for _ in range(150)]
    cases += [b"null", b"3", b"0.5", b"true", b"[]", b'"a"', b"{}", b'{"schema_version": 3}']
    cases += [b'{"schema_version": 3, "seal": 1}', b'{"schema_version": 3, "seal": "1"}']
    folders = [written(tmp_path / str(index), case) for index, case in enumerate(cases) if b"\0" not in case[:4]]
    assert same_sentences(folders, cpp_probe) == len(folders)


def test_what_is_no_folder_has_the_same_sentences(tmp_path: Path, engines: Path, cpp_probe: Probe) -> None:
    (tmp_path / MANIFEST).mkdir()
    for name in (str(tmp_path), f"{tmp_path}/./missing//", "missing/", "/", "//", "it's"):
        assert cpp_sentences(cpp_probe("manifest", name)) == python_sentences(
            lambda name=name: Manifest.load(Path(name))
        )  # type: ignore[misc]


def test_names_within_a_folder_are_those_of_python(cpp_probe: Probe) -> None:
    names = ["a", "a/b", "../a", "a/../b", "a/..", "/a", "//etc/passwd", "/", "a//b", "a/", "./a", "a/.", ".", "..",
             "...", ".a", "a\\b", "a b", "é/🙂", "x" * 255, "x" * 256, "é" * 127, "é" * 128, "///a",
             "///", "a/./b", ""]  # fmt: skip
    expected = [f"{Path(name)} is {'inside' if is_inside(name) else 'not inside'}" for name in names]
    assert cpp_probe("inside", *names).stdout.splitlines() == expected


def test_verified_files_are_those_of_python(tmp_path: Path, engines: Path, cpp_probe: Probe) -> None:
    folder = shutil.copytree(engines, tmp_path / "engines")
    manifest, name = Manifest.load(folder), "onnx/vae_decoder.onnx"
    path = folder / name
    assert cpp_probe("verify", folder, name).stdout == f"{path}\n"
    content = path.read_bytes()

    def same() -> None:
        expected = python_sentences(lambda: verify_file(folder, name, manifest.files[name]))
        assert expected is not None
        assert cpp_sentences(cpp_probe("verify", folder, name)) == expected

    for changed in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], b"", content + b"\0"):
        path.write_bytes(changed)
        same()
    path.unlink()
    same()
    os.mkfifo(path)
    same()


def test_graphs_and_engines_are_those_of_python(tmp_path: Path, document: Document, cpp_probe: Probe) -> None:
    odd = json.loads(json.dumps(document))
    for target, file in (("sm_90", "onnx/vae_decoder.onnx"), ("sm_89", "onnx/text_step.onnx")):
        odd["engines"].append({**odd["engines"][0], "backend": "tensorrt", "target": target, "file": file})
    folder = forged(tmp_path / "engines", odd)
    graph = odd["engines"][0]["graph"]
    both = {"file": "onnx/text_step.onnx", "targets": ["sm_89", "sm_90"]}
    assert printed(cpp_probe("engine", folder, graph, "tensorrt")) == both
    assert printed(cpp_probe("engine", folder, graph, "tensorrt", "sm_90"))["file"] == "onnx/vae_decoder.onnx"
    assert printed(cpp_probe("engine", folder, graph, "tensorrt", "sm_75"))["file"] is None
    assert printed(cpp_probe("engine", folder, graph, "none")) == {"file": None, "targets": []}
    assert cpp_probe("graph", folder, "vae_decoder").stdout == "onnx/vae_decoder.onnx\n"
    expected = python_sentences(lambda: Manifest.load(folder).graph("other"))
    assert expected is not None
    assert cpp_sentences(cpp_probe("graph", folder, "other")) == expected


def test_sizes_of_images_are_those_of_python(tmp_path: Path, document: Document, cpp_probe: Probe) -> None:
    ranges = json.loads(json.dumps(document))
    for spec in ranges["graphs"]["denoise_step"]["inputs"]:
        if spec["name"].endswith("_latents"):
            spec["shape"][2:] = [[8, 12, 16], 16]
    folder = forged(tmp_path / "engines", ranges)
    manifest = Manifest.load(folder)
    for height, width in ((80, 128), (32, 128), (160, 128), (64, 64), (0, 0), (-32, 128), (None, None)):
        given = [each for each in (height, width) if each is not None]
        expected = python_sentences(lambda h=height, w=width: image_size(manifest, h, w))  # type: ignore[misc]
        assert expected is not None
        assert cpp_sentences(cpp_probe("image_size", folder, *given)) == expected
    assert printed(cpp_probe("image_size", folder, 96, 128)) == [96, 128]
