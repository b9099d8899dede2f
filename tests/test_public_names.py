from __future__ import annotations

import pytest
from document_blocks import ROOT

import infid_export


@pytest.mark.parametrize("name", infid_export.__all__)
def test_every_public_name_is_there_and_in_the_reference(name: str) -> None:
    found = getattr(infid_export, name)
    if name != "__version__":
        assert found.__doc__
        assert f"::: {found.__module__}.{name}\n" in (ROOT / "docs/api.md").read_text()
