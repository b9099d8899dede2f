from __future__ import annotations

import pytest

from infid_engines import gpu
from infid_engines.device import CPU, Device, requested_device
from infid_engines.errors import BackendUnavailableError, InputError


@pytest.mark.parametrize(
    ("text", "device", "shown"),
    [
        ("cpu", CPU, "cpu"),
        ("cuda", Device("cuda"), "cuda"),
        ("cuda:0", Device("cuda", 0), "cuda"),
        ("cuda:1", Device("cuda", 1), "cuda:1"),
        ("cuda:12", Device("cuda", 12), "cuda:12"),
    ],
)
def test_a_device_is_read_and_written(text: str, device: Device, shown: str) -> None:
    assert Device.parse(text) == device
    assert str(device) == shown


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "tpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:1.0", "cuda:1\n", "cuda: 1", "cuda:٣",
     "cuda:99999", "cuda1", "cpu:0", "cpu:1", "cpu:", "sm_", "sm_x", "cpu-", "\ud800"],
)  # fmt: skip
def test_what_is_no_device_is_one_sentence_and_a_fix(text: str) -> None:
    for read in (Device.parse, requested_device):
        with pytest.raises(InputError, match="There is no device ") as caught:
            read(text)
        assert caught.value.fix == "Give auto, cpu, cuda, or cuda:1 for the second GPU."


def test_auto_and_targets_name_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [requested_device(text) for text in ("auto", "sm_89", "cpu-avx512_vnni")] == [None] * 3
    monkeypatch.setattr(gpu, "architectures", lambda: ("sm_90",) * 2)
    assert [requested_device(text) for text in ("cpu", "cuda", "cuda:1")] == [CPU, Device("cuda"), Device("cuda", 1)]


@pytest.mark.parametrize(
    ("count", "message", "fix"),
    [
        (0, "There is no cuda:2: CUDA finds no GPUs on this machine", "use the CPU"),
        (1, "There is no cuda:2: CUDA finds 1 GPU on this machine", "Use cuda:0 or lower"),
        (2, "There is no cuda:2: CUDA finds 2 GPUs on this machine", "Use cuda:1 or lower"),
    ],
)
def test_a_missing_gpu_is_counted(monkeypatch: pytest.MonkeyPatch, count: int, message: str, fix: str) -> None:
    monkeypatch.setattr(gpu, "architectures", lambda: ("sm_90",) * count)
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        requested_device("cuda:2")
    assert fix in caught.value.fix
    assert requested_device("cuda") == Device("cuda")  # of the first one, backends say what they lack
