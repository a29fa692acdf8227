"""The networks of the contrastive generator: G, D, E and the class comparator F.

Specification gccs, section 2.1; names and shapes are those of the inferred parent, CE-GZSL (arXiv
2103.16173).

Letters: B samples, K classes, D feature width, T text width, Z noise width.

Example:
    >>> nets = Nets(feature=512, text=512)
    >>> nets.G(torch.randn(4, 512), torch.randn(4, 512)).shape
    torch.Size([4, 512])
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

End = Literal["linear", "relu"]

SLOPE = 0.2
INIT = 0.02
"""Standard deviation of the first weights; biases begin at 0."""


class Pair(nn.Module):
    """Two-layer perceptron on two inputs side by side.

    Args:
        inputs: Width of both inputs together.
        hidden: Width between.
        outputs: Width of the answer.
        end: ``relu`` or ``linear``.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, end: End = "linear") -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)
        self.end = end

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, ·) and (B, ·) to (B, outputs)."""
        out = self.fc2(F.leaky_relu(self.fc1(torch.cat([first, second], -1)), SLOPE))
        return F.relu(out) if self.end == "relu" else out


class Embedding(nn.Module):
    """E: feature to h, which the graph compares, and to a unit vector, which the contrast compares."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) to h (B, hidden), not negative, and q (B, outputs) of length 1."""
        h = F.relu(self.fc1(feature))
        return h, F.normalize(self.fc2(h), dim=-1)


class Nets(nn.Module):
    """All four, with the first values of the parent.

    Args:
        feature: D.
        text: T.
        noise: Z; 0 = T.
        g_hidden: Hidden width of G.
        d_hidden: Hidden width of D.
        embed: Width of h.
        proj: Width of q.
        f_hidden: Hidden width of F; 0 = no comparator.
        end: How G ends: ``linear``, or ``relu`` (parent) for features without sign.
        random: Generator of the first weights; None = torch's own.
    """

    def __init__(
        self,
        feature: int,
        text: int,
        *,
        noise: int = 0,
        g_hidden: int = 2048,
        d_hidden: int = 2048,
        embed: int = 1024,
        proj: int = 256,
        f_hidden: int = 1024,
        end: End = "linear",
        random: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.noise = noise or text
        with torch.random.fork_rng(devices=[]):  # values are drawn below; the caller's generator stays
            self.G = Pair(self.noise + text, g_hidden, feature, end=end)
            self.D = Pair(feature + text, d_hidden, 1)
            self.E = Embedding(feature, embed, proj)
            self.F = Pair(embed + text, f_hidden, 1) if f_hidden else None
        with torch.no_grad():
            for value in self.parameters():
                value.normal_(0, INIT, generator=random) if value.ndim > 1 else value.zero_()

    def compare(self, h: Tensor, text: Tensor) -> Tensor:
        """Logits (B, K) of embeddings (B, embed) for the texts (K, T) of all classes, by F."""
        assert self.F is not None, "there is no comparator"
        own, other = self.F.fc1.weight.split([h.shape[1], text.shape[1]], 1)
        both = F.linear(h, own, self.F.fc1.bias)[:, None] + F.linear(text, other)  # (B, K, f_hidden)
        return self.F.fc2(F.leaky_relu(both, SLOPE))[..., 0]

    def critics(self) -> list[nn.Parameter]:
        """What the critic's step trains: D, E and F."""
        return [p for name, p in self.named_parameters() if not name.startswith("G.")]
