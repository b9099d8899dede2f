"""The device that engines run on, as users write it: `cpu`, `cuda`, or `cuda:1` for the second of several GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infid_engines.errors import InputError
from infid_engines.gpu import require_gpu
from infid_engines.validation import shown

_DEVICE = re.compile(r"(cpu)|(cuda)(?::(0|[1-9][0-9]{0,3}))?")
_TARGET = re.compile(r"sm_[0-9]+|cpu-\w+")


@dataclass(frozen=True)
class Device:
    """The processor, or one GPU.

    Args:
        kind: `cpu` or `cuda`.
        index: number of the GPU among those that CUDA finds.
    """

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Return the device of a text; `cuda` is `cuda:0`.

        Raises:
            InputError: the text is not a device.
        """
        found = _DEVICE.fullmatch(text)
        if found is None:
            raise InputError(
                f"There is no device {shown(text)}.", fix="Give auto, cpu, cuda, or cuda:1 for the second GPU."
            )
        return cls(found[1] or found[2], int(found[3] or 0))

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.index else self.kind


CPU = Device("cpu")


def requested_device(text: str) -> Device | None:
    """Return the device that a user asked for; None for `auto`, and for a target such as `sm_89`.

    Raises:
        InputError: the text is none of these.
        BackendUnavailableError: the machine has fewer GPUs.
    """
    if text == "auto" or _TARGET.fullmatch(text):
        return None
    device = Device.parse(text)
    if device.index:  # of the first GPU, backends say themselves what they lack
        require_gpu(device.index)
    return device
