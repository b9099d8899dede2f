"""Compares the tensors of a file with the parameters of a network by name. Imports are light."""

from __future__ import annotations

from collections.abc import Iterable

from infid_engines.errors import InputError

# Suffixes of tensors that no result depends on.
WITHOUT_EFFECT = (
    "position_ids",  # 0, 1, 2, …: a buffer that older versions of transformers saved
    "logit_scale",  # for CLIP's training loss
)


def require_all(
    what: str, missing: Iterable[str] = (), unexpected: Iterable[str] = (), mismatched: Iterable[str] = ()
) -> None:
    """Reject weights if the network would keep random ones or ignore some.

    Raises:
        InputError: a name is in one of the three groups.
    """
    groups = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(mismatched)}
    if not any(groups.values()):
        return
    shown = "; ".join(
        f"{problem}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for problem, names in groups.items()
        if names
    )
    adapted = any("base_layer" in name or "lora_" in name for name in groups["unexpected"])
    raise InputError(
        f"{what} do not fit their configuration ({shown}).",
        fix="Merge the adapter first (diffusers' `fuse_lora` and `unload_lora_weights`, PEFT's `merge_and_unload`), "
        "then save again."
        if adapted
        else "Convert or download the checkpoint again.",
    )
