"""A backend added by CONTRIBUTING's recipe: this class, and its entry in the registry."""

from __future__ import annotations

from pathlib import Path

import onnx

from infid_engines.backends import Backend, BuildRequest, Engine, Extra
from infid_engines.device import Device
from infid_engines.errors import InputError
from infid_engines.manifest import TensorSpec
from infid_engines.onnxruntime_backend import OnnxRuntimeBackend
from infid_engines.progress import Stage


class ToyBackend(Backend):
    """Its engine is a copy of the graph with the weights inside, run by ONNX Runtime."""

    name = "toy"
    rank = -1
    extras = (Extra("toy", {"toy-library": "1.5"}),)
    device = "cpu"

    def versions(self) -> dict[str, str]:
        return {self.name: "1.5"}

    def check_target(self, target: str) -> None:
        if target != "cpu":
            raise InputError(f"toy has no target '{target}'.", fix="Use cpu.")

    def default_targets(self) -> tuple[str, ...]:
        return ("cpu",)

    def present_target(self, index: int = 0) -> str | None:
        return "cpu"

    def check_device(self, index: int = 0) -> None:
        pass

    def build(self, request: BuildRequest, stage: Stage) -> None:
        onnx.save(onnx.load(str(request.onnx)), str(request.output))
        stage.update(1.0)

    def load(
        self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: Device,
        threads: int | None = None,
    ) -> Engine:  # fmt: skip
        return OnnxRuntimeBackend().load(path, inputs, outputs, device)
