"""A language model over bytes: a decoder-only transformer (Vaswani et al. 2017, arXiv 1706.03762) with layer
normalisation before each part (as in GPT-2), learned positions, and one matrix for input and output embeddings (Press
and Wolf 2017, arXiv 1608.05859)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256


class Block(nn.Module):
    """Causal self-attention and two linear layers with GELU, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self._drop(self.mix(self._attend(self.attention_norm(states))))
        return states + self._drop(self.narrow(F.gelu(self.widen(self.inner_norm(states)))))

    def _attend(self, states: Tensor) -> Tensor:
        samples, length, width = states.shape
        query, key, value = (
            part.view(samples, length, self.heads, -1).transpose(1, 2) for part in self.qkv(states).split(width, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).reshape(samples, length, width)

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)


class ByteTransformer(nn.Module):
    """Maps bytes [N, L] (any integer type, L up to `context`) to taps `features` [N, L, width] and `logits` [N, L, 256]
    of the byte after each."""

    def __init__(self, *, context: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.embedding, self.position = nn.Embedding(BYTES, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self._initialise(layers)

    def enter(self, text: Tensor) -> Tensor:
        """What the first block is shown."""
        places = torch.arange(text.shape[1], device=text.device)
        states = self.embedding(text.long()) + self.position(places)
        return F.dropout(states, self.dropout, self.training)

    def stages(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def leave(self, states: Tensor) -> dict[str, Tensor]:
        """From what the last block gives to the taps."""
        features = self.norm(states)
        return {"features": features, "logits": F.linear(features, self.embedding.weight)}

    def forward(self, text: Tensor) -> dict[str, Tensor]:
        states = self.enter(text)
        for block in self.blocks:
            states = block(states)
        return self.leave(states)

    def _initialise(self, layers: int) -> None:
        """As GPT-2: deviation 0.02, less on what is added up over the layers; logits begin near 0."""
        for name, parameter in self.named_parameters():
            if name.endswith(("mix.weight", "narrow.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def build(config: dict[str, Any]) -> ByteTransformer:
    """The model of a `config.json`."""
    return ByteTransformer(**config["model"])
