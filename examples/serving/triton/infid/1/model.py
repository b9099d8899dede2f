"""Images of a person in NVIDIA Triton's Python backend; `config.pbtxt` describes inputs and outputs.

Run on the Triton 2.51 of nvidia-pytriton, on a CPU; not yet on a GPU. Its process needs
`pip install "infid-export[cpu,tensorrt]"` for the Python that the backend was built for.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from infid_engines.errors import CancelledError, InfidError, InputError
from infid_export import Person, Pipeline


class AllCancelled:
    """Tells the engines to stop once no client waits for any of some requests; they look after each step."""

    def __init__(self, requests: Sequence[Any]) -> None:
        self._requests = requests

    def is_set(self) -> bool:
        """Return whether all requests are cancelled."""
        return all(request.is_cancelled() for request in self._requests)


class TritonPythonModel:
    """One instance per GPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine folder."""
        if args["model_instance_kind"] == "GPU":
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]  # before CUDA is loaded
        given = {name: each["string_value"] for name, each in json.loads(args["model_config"])["parameters"].items()}
        try:
            self._pipe = Pipeline.load(given["engines"], given.get("backend", "auto"), given.get("device", "auto"))
        except InfidError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        pb_utils.Logger.log_info(f"backend {self._pipe.choice}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Draw the images of some requests; those with the same number of steps are drawn together."""
        responses: dict[int, Any] = {}
        groups: dict[int | None, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_first(request, "STEPS"), []).append(index)
        for steps, indices in groups.items():
            responses |= zip(indices, self._group([requests[index] for index in indices], steps), strict=True)
        return [responses[index] for index in range(len(requests))]

    def finalize(self) -> None:
        """Free the engines."""
        self._pipe.close()

    def _group(self, requests: list[Any], steps: int | None) -> list[Any]:
        """Draw requests at once; if that fails, one at a time, so that only the one at fault gets the error."""
        try:
            return self._draw(requests, steps)
        except Exception as error:
            if len(requests) > 1:
                return [self._group([request], steps)[0] for request in requests]
            if not isinstance(error, InfidError):
                raise  # Triton logs it, and reports it to the client
            cancelled = isinstance(error, CancelledError)
            code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INVALID_ARG
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))]

    def _draw(self, requests: list[Any], steps: int | None) -> list[Any]:
        prompts, people, seeds, counts = [], [], [], []
        for request in requests:
            rows = [each.decode() for each in _column(request, "PROMPT")]
            prompts += rows
            people += [_person(each) for each in _column(request, "PERSON")]
            seed = _column(request, "SEED")
            seeds += _random_seeds(len(rows)) if seed is None else [int(each) for each in seed]
            counts.append(len(rows))
        images = self._pipe.generate(prompts, people, seed=seeds, steps=steps, cancel=AllCancelled(requests))
        found = []
        for count in counts:
            content = np.array([[_png(image)] for image in images[:count]], np.object_)
            images = images[count:]
            found.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("IMAGE", content)]))
        return found


def _column(request: Any, name: str) -> Any:
    """Return an input's values, one per image; None if it is left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)


def _first(request: Any, name: str) -> int | None:
    values = _column(request, name)
    return None if values is None else int(values[0])


def _person(content: bytes) -> Person:
    """Read a person from memory; a face is not written to a disk."""
    memory = os.memfd_create("person")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(content)
        return Person.load(f"/proc/self/fd/{memory}")
    except InfidError as error:
        raise InputError("PERSON is not an intact person file.", fix="Enroll the person again.") from error
    finally:
        os.close(memory)


def _random_seeds(count: int) -> list[int]:
    return [int(seed) for seed in np.random.default_rng().integers(0, 1 << 63, count)]


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
