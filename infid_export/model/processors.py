"""Two-stream attention: processors for the text and the identity rows of one UNet batch.

The order of the rows is `text_uncond, text_cond, id_uncond, id_cond` (B rows each); either stream may be
absent. A `Streams` object passes the inputs of a call through diffusers' `cross_attention_kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from infid_engines.errors import InputError
from infid_export.model.config import IdentityConfig
from infid_kernels import OPS, AttentionOps, adain, adain_mean


@dataclass
class Streams:
    """The inputs of the attention layers for one UNet call.

    A stream has R rows: 2B with guidance (unconditional, then conditional), else B.

    Args:
        text: whether the batch has text rows (they come first).
        identity_keys: `[R, T, S]` image keys of all blocks; None if the batch has no identity rows.
        identity_values: `[R, T, S]`, likewise.
        style_strength: `[R]`, s of AdaIN.
        identity_strength: `[R]`, λ.
        text_features: per block path, `[R, N, C]`, the input of `attn1` in the text rows. They are collected if the
            batch has text rows, and read if it has only identity rows. Without features, identity rows attend only to
            themselves: in `SingleStep`, and in training, which also leaves out the text cross-attention.
        people: number of samples that share each row of the prompt and the text features, if these are those of one
            template; None if each sample has its own.
    """

    text: bool
    identity_keys: Tensor | None = None
    identity_values: Tensor | None = None
    style_strength: Tensor | None = None
    identity_strength: Tensor | None = None
    text_features: dict[str, Tensor] = field(default_factory=dict)
    people: int | None = None

    def spread(self, rows: Tensor) -> Tensor:
        """Repeat each row of a template for all people: `[u, c]` becomes `[u, u, …, c, c, …]`."""
        if self.people is None:
            return rows
        return rows.unsqueeze(1).expand(-1, self.people, *rows.shape[1:]).flatten(0, 1)

    @property
    def identity(self) -> bool:
        """Whether the batch has identity rows."""
        return self.identity_keys is not None

    def split(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Split a tensor over all rows into text rows and identity rows; an absent stream is None."""
        if self.text and self.identity:
            # slices instead of chunk(): ONNX has no simple counterpart of a list of tensors
            half = rows.shape[0] // 2
            return rows[:half], rows[half:]
        return (rows, None) if self.text else (None, rows)


class SelfAttentionProcessor:
    """`attn1`: plain for text rows, mixed attention for identity rows.

    Args:
        path: path of the transformer block in the UNet, which is also the name of its text features.
        config: the method variant.
        ops: the implementation of mixed attention.
    """

    def __init__(self, path: str, config: IdentityConfig, ops: AttentionOps) -> None:
        self.path = path
        self.config = config
        self.ops = ops

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        streams: Streams | None = None,
    ) -> Tensor:
        """Attend within the layer; `hidden_states` is `[rows, N, C]`, and so is the result."""
        streams = streams or Streams(text=True)
        q_t, q_id = streams.split(_heads(attn, attn.to_q(hidden_states)))
        k_t, k_id = streams.split(_heads(attn, attn.to_k(hidden_states)))
        v_t, v_id = streams.split(_heads(attn, attn.to_v(hidden_states)))
        outputs = []
        if streams.text:
            text_rows, _ = streams.split(hidden_states)
            assert text_rows is not None and q_t is not None and k_t is not None and v_t is not None
            streams.text_features[self.path] = text_rows
            outputs.append(scaled_dot_product_attention(q_t, k_t, v_t))
        elif self.path in streams.text_features:
            features = streams.text_features[self.path]
            k_t, v_t = (_heads(attn, streams.spread(project(features))) for project in (attn.to_k, attn.to_v))
        if streams.identity:
            assert q_id is not None and k_id is not None and v_id is not None
            if k_t is None or v_t is None or self.config.self_attention == "plain":
                outputs.append(scaled_dot_product_attention(q_id, k_id, v_id))
            else:
                outputs.append(self._interact(q_id, k_id, v_id, k_t, v_t, streams.style_strength))
        return _output(attn, outputs)

    def _interact(
        self, q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, strength: Tensor | None
    ) -> Tensor:
        assert strength is not None
        if self.config.self_attention == "mutual":
            return scaled_dot_product_attention(q, k_t, v_t)
        if self.config.adain == "mean":
            return self.ops.mixed_attention(q, k_id, v_id, k_t, v_t, strength)
        k_hat = _adain(self.config, k_id, k_t, strength)
        v_hat = _adain(self.config, v_id, v_t, strength)
        return scaled_dot_product_attention(q, torch.cat([k_hat, k_t], dim=2), torch.cat([v_hat, v_t], dim=2))


class CrossAttentionProcessor:
    """`attn2`: plain for text rows, text and identity merged for identity rows.

    Args:
        channels: slice of this block's channels in the stacked identity keys and values.
        config: the method variant.
        ops: the implementation of merged cross-attention.
    """

    def __init__(self, channels: slice, config: IdentityConfig, ops: AttentionOps) -> None:
        self.channels = channels
        self.config = config
        self.ops = ops

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        streams: Streams | None = None,
    ) -> Tensor:
        """Attend to the prompt and the person; `hidden_states` is `[rows, N, C]`, and so is the result.

        `encoder_hidden_states` is `[R, L, D]`, shared by both streams, since they have the same prompts.
        """
        streams = streams or Streams(text=True)
        q_t, q_id = streams.split(_heads(attn, attn.to_q(hidden_states)))
        k_t = v_t = None
        if encoder_hidden_states is not None:
            k_t = _heads(attn, streams.spread(attn.to_k(encoder_hidden_states)))
            v_t = _heads(attn, streams.spread(attn.to_v(encoder_hidden_states)))
        outputs = []
        if q_t is not None:
            assert k_t is not None and v_t is not None
            outputs.append(scaled_dot_product_attention(q_t, k_t, v_t))
        if q_id is not None:
            outputs.append(self._merge(attn, q_id, k_t, v_t, streams))
        return _output(attn, outputs)

    def _merge(self, attn: Attention, q: Tensor, k_t: Tensor | None, v_t: Tensor | None, streams: Streams) -> Tensor:
        assert streams.identity_keys is not None and streams.identity_values is not None
        k_id = _heads(attn, streams.identity_keys[..., self.channels])
        v_id = _heads(attn, streams.identity_values[..., self.channels])
        if k_t is None or v_t is None:
            return scaled_dot_product_attention(q, k_id, v_id)
        strength, factor = streams.style_strength, streams.identity_strength
        assert factor is not None
        where, kind = self.config.cross_adain, self.config.adain
        if where == "kv" and kind == "mean":
            assert strength is not None
            return self.ops.merged_cross_attention(q, k_t, v_t, k_id, v_id, strength, factor)
        if where == "kv":
            k_id = _adain(self.config, k_id, k_t, strength)
            v_id = _adain(self.config, v_id, v_t, strength)
        text = scaled_dot_product_attention(q, k_t, v_t)
        identity = scaled_dot_product_attention(q, k_id, v_id)
        if where == "output":
            identity = _adain(self.config, identity, text, strength)
        return text + factor.view(-1, 1, 1, 1).to(q.dtype) * identity


def identity_blocks(unet: nn.Module) -> dict[str, int]:
    """Return the path of every cross-attention (`attn2`) of a UNet and its channels, in the UNet's order."""
    return {
        path: module.to_k.out_features
        for path, module in unet.named_modules()
        if isinstance(module, Attention) and path.endswith(".attn2")
    }


def install_processors(unet: Any, config: IdentityConfig, ops: str = "torch") -> None:
    """Install the two-stream processors in every transformer block of a UNet.

    Args:
        unet: diffusers' UNet2DConditionModel.
        config: the method variant.
        ops: implementation of mixed attention and merged cross-attention, `torch` or `triton`.

    Raises:
        InputError: the UNet has attention layers that the method does not support, or `ops` does not support the
            method variant.
    """
    if ops not in OPS:
        raise InputError(f"There are no attention operations named {ops!r}.", fix=f"Choose from {', '.join(OPS)}.")
    is_method = config.self_attention != "mutual" and config.adain == "mean" and config.cross_adain == "kv"
    if ops == "triton" and not is_method:
        raise InputError(
            "The Triton kernels support only the method itself: mixed (or plain) self-attention with AdaIN-mean on "
            "keys and values.",
            fix='Use ops="torch" (the default) for the ablations.',
        )
    processors: dict[str, SelfAttentionProcessor | CrossAttentionProcessor] = {}
    offset = 0
    for path, module in unet.named_modules():
        if not isinstance(module, Attention):
            continue
        if module.group_norm is not None or module.residual_connection or module.norm_q is not None:
            raise InputError(
                f"The UNet's attention layer {path} does not belong to an SDXL transformer block.",
                fix="Use an SDXL checkpoint (transformer blocks with linear attention projections).",
            )
        if path.endswith(".attn1"):
            processors[f"{path}.processor"] = SelfAttentionProcessor(path.removesuffix(".attn1"), config, OPS[ops])
        else:
            channels = module.to_k.out_features
            processors[f"{path}.processor"] = CrossAttentionProcessor(
                slice(offset, offset + channels), config, OPS[ops]
            )
            offset += channels
    if offset == 0:
        raise InputError("The UNet has no transformer block.", fix="Use an SDXL checkpoint.")
    unet.set_attn_processor(processors)


def text_feature_paths(blocks: Mapping[str, int]) -> list[str]:
    """Return the names of the per-block text features, in the UNet's order."""
    return [path.removesuffix(".attn2") for path in blocks]


def _heads(attn: Attention, rows: Tensor) -> Tensor:
    """Reshape `[rows, N, H·d]` to `[rows, H, N, d]`."""
    return rows.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _output(attn: Attention, outputs: list[Tensor]) -> Tensor:
    """Join the streams' `[rows, H, N, d]` and apply the output projection."""
    joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return attn.to_out[1](attn.to_out[0](joined.transpose(1, 2).flatten(2)))


def _adain(config: IdentityConfig, x: Tensor, y: Tensor, strength: Tensor | None) -> Tensor:
    if config.adain == "off":
        return x
    assert strength is not None
    strength = strength.view(-1, 1, 1, 1)
    return adain_mean(x, y, strength) if config.adain == "mean" else adain(x, y, strength)
