"""The SOFS head: everything behind the backbone (specification sofs, 2, by its fast scheme 2.9).

Everything that does not depend on the query is in a ``SupportState``, both priors come from one cosine
matrix, and only support cells with foreground take part in the fusion. Letters: B episodes, S support views,
Q queries, L layers, N = h * w cells, C backbone width, R reduced width, E embedding width, J support cells
with foreground.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.backbones.base import Features
from fewspect.errors import UserError
from fewspect.methods.sofs.state import Segmentation, SupportState
from fewspect.nn import prototype as match
from fewspect.nn.attention import Block

Trace = dict[str, Tensor]
"""Intermediate results by name, filled on request."""

PUBLISHED_DIM, HEAD_DIM = 256, 64
"""Widths R = E of the published head and of each of its attention heads."""


class Head(nn.Module):
    """Feature re-correction head (2.7).

    Args:
        layers: Number of backbone layers L.
        width: Backbone width C.
        reduce_dim: Width R after the first projections; None = 256 as published, or ``width`` if smaller.
        embed_dim: Width E of the attention blocks; None likewise.
        heads: Attention heads; None = heads of width 64, as published.
        depth: Attention blocks.
        temperature: Of the fusion.
        prior_scale: Factor on both priors.
        abnormal_prior: Whether the abnormal prior is an input of the query merge.
        mask_downsample: ``area`` (exact share) or ``bilinear`` (ablation).
        classifier: ``prototype`` (z made from the support) or ``conv`` (learned, ablation).
        fusion_norm: Divide the fusion by the total mask weight, so that its strength does not depend on the
            number of views or the size of the defect; not as published, needs training with it.
        shot_average: ``all`` = means over all views (published); ``foreground`` = over views with foreground,
            so that additional normal views feed the abnormal prior only.
        channel_dropout: Rate on the first projections, whole channels.
        dropout: Rate inside the attention blocks.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        *,
        reduce_dim: int | None = None,
        embed_dim: int | None = None,
        heads: int | None = None,
        depth: int = 2,
        temperature: float = 0.1,
        prior_scale: float = 10.0,
        abnormal_prior: bool = True,
        mask_downsample: Literal["area", "bilinear"] = "area",
        classifier: Literal["prototype", "conv"] = "prototype",
        fusion_norm: bool = False,
        shot_average: Literal["all", "foreground"] = "all",
        channel_dropout: float = 0.5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        reduce_dim = reduce_dim or min(PUBLISHED_DIM, width)
        embed_dim = embed_dim or min(PUBLISHED_DIM, width)
        heads = heads or max(1, embed_dim // HEAD_DIM)
        if embed_dim % heads:
            raise UserError(
                f"sofs: embed_dim {embed_dim} is not a multiple of heads {heads}.", "Change one of them."
            )
        self.layers, self.width, self.reduce_dim = layers, width, reduce_dim
        self.temperature, self.prior_scale, self.abnormal_prior = temperature, prior_scale, abnormal_prior
        self.mask_downsample, self.fusion_norm, self.shot_average = mask_downsample, fusion_norm, shot_average
        self.channel_dropout = channel_dropout
        priors = layers * (2 if abnormal_prior else 1)
        self.reduce = Projections(layers * width, reduce_dim, embed_dim, priors)
        self.transformer = Transformer(embed_dim, heads, depth, dropout)
        self.conv_classifier = conv_classifier(embed_dim) if classifier == "conv" else None
        self.transformer.support_prototype.requires_grad_(self.conv_classifier is None)

    # -- support side -----------------------------------------------------------------------------------

    def encode_support(
        self, features: Features, mask: Tensor, count: Tensor | None = None, trace: Trace | None = None
    ) -> SupportState:
        """Do everything that does not depend on a query.

        Args:
            features: Tokens (B, S, N, C) per layer (``Features.grouped``).
            mask: (B, S, H, W); 1 = foreground.
            count: (B, S) multiplicity of each view, 0 = padding; default: all 1.
            trace: Filled with intermediate results.
        """
        ones = mask.new_ones(mask.shape[:2], dtype=torch.float32)
        count = ones if count is None else count.float()
        m = match.intensity(mask, features.grid, self.mask_downsample).flatten(2)  # (B, S, N)
        m = m * count.gt(0)[..., None]
        share = self._share(m, count)  # (B, S)
        layers = torch.stack([match.masked_mean(t.float(), m) for t in features.tokens], 2)  # (B, S, L, C)
        projected = self._project(self.reduce.down_prototype, layers.flatten(2)[:, :, None])  # g (B, S, 1, R)
        support = self._merge_support(features, projected, trace)  # (B, S, N, E)
        state = self._state(features, mask, m=m, count=count, share=share, s=support, g=projected[:, :, 0])
        if trace is not None:
            trace |= {"mask_down": m, "layer_prototypes": layers, "down_proto": projected[:, :, 0]}
            trace |= {"mask_weight": state.foreground.float(), "meta_prototype": state.classifier}
        return state

    def _share(self, m: Tensor, count: Tensor) -> Tensor:
        weight = count * (m.sum(-1) > 0) if self.shot_average == "foreground" else count
        return weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def _project(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        """1x1 convolution, ReLU and channel dropout of tokens (..., N, L * C)."""
        return match.channel_dropout(F.relu(layer(tokens)), self.channel_dropout, training=self.training)

    def _merge_support(self, features: Features, projected: Tensor, trace: Trace | None) -> Tensor:
        down = self._project(self.reduce.down_support, torch.cat(features.tokens, -1))  # s (B, S, N, R)
        w_map, w_constant = self.reduce.merge_support.weight.split(self.reduce_dim, dim=1)
        merged = F.relu(F.linear(down, w_map) + F.linear(projected, w_constant))  # s' (B, S, N, E)
        if trace is not None:
            trace |= {"down_supp": down, "supp_merge": merged}
        tokens = self.transformer(merged.flatten(0, 1), features.grid, trace, "supp")  # (B * S, N, E)
        return tokens.view_as(merged)

    def _state(
        self,
        features: Features,
        mask: Tensor,
        *,
        m: Tensor,
        count: Tensor,
        share: Tensor,
        s: Tensor,
        g: Tensor,
    ) -> SupportState:
        with torch.autocast(m.device.type, enabled=False):
            s, mean = s.float(), torch.einsum("bs,bsr->br", share, g.float())  # gq
            z = torch.einsum("bs,bse->be", share, self.transformer.prototype(s, m))
            columns = self.reduce.merge_query.weight[:, self.reduce_dim : 2 * self.reduce_dim]  # (E, R)
            index = match.foreground_cells(m.flatten(1))  # (B, J)
            cells, cell_mask = match.gather(s.flatten(1, 2), index), match.gather(m.flatten(1), index)
            weight = (m * count[..., None]).flatten(1)  # multiplicity times share of foreground
            if self.fusion_norm:
                weight = weight / weight.sum(-1, keepdim=True).clamp(min=match.PROTOTYPE_EPS)
            return SupportState(
                unit=tuple(match.unit(t) for t in features.tokens),
                intensity=m,
                count=count,
                share=share,
                bias=F.linear(mean, columns),
                key=match.unit(cells),
                key_mask=cell_mask,
                value=match.gather(weight, index)[..., None] * cells,
                classifier=z,
                foreground=((mask == 1).flatten(2).any(-1) & (count > 0)).any(-1),
            )

    # -- query side -------------------------------------------------------------------------------------

    def segment(self, features: Features, state: SupportState, trace: Trace | None = None) -> Segmentation:
        """Answer queries on the feature grid.

        Args:
            features: Tokens (B, Q, N, C) per layer, B as in the state.
            state: What ``encode_support`` returned.
            trace: Filled with intermediate results.
        """
        semantic, abnormal = self.priors(features, state)  # (B, Q, N, L) each
        down = self._project(self.reduce.down_query, torch.cat(features.tokens, -1))  # q (B, Q, N, R)
        merged = self._merge_query(down, semantic, abnormal, state)  # q' (B, Q, N, E)
        tokens = self.transformer(merged.flatten(0, 1), features.grid, trace, "query").view_as(merged)
        fused = match.fuse(tokens, state.key, state.key_mask, state.value, self.temperature)  # u (B, Q, N, E)
        logits = self._classify(fused, features.grid, state)  # (B, Q, h, w)
        anomaly = abnormal.amax(-1).unflatten(-1, features.grid)  # A (B, Q, h, w)
        if trace is not None:
            trace |= {"semantic_prior": semantic, "abnormal_prior": abnormal, "abnormal_max": anomaly}
            trace |= {"down_query": down, "query_merge": merged, "fused": fused, "logits": logits}
        return Segmentation(logits, anomaly)

    def priors(self, features: Features, state: SupportState) -> tuple[Tensor, Tensor]:
        """Semantic and abnormal prior, (B, Q, N, L) float32 each, layer by layer."""
        shape = features.tokens[0].shape[:3]
        maps = [
            match.cosine_priors(match.unit(t).flatten(1, 2), unit, state.intensity, state.count, state.share)
            for t, unit in zip(features.tokens, state.unit, strict=True)
        ]
        semantic, abnormal = (torch.stack(m, -1) for m in zip(*maps, strict=True))
        return semantic.unflatten(1, shape[1:]), abnormal.unflatten(1, shape[1:])

    def _merge_query(self, down: Tensor, semantic: Tensor, abnormal: Tensor, state: SupportState) -> Tensor:
        priors = torch.cat([semantic, abnormal], -1) if self.abnormal_prior else semantic  # (B, Q, N, P)
        w_map, _, w_prior = self.reduce.merge_query.weight.tensor_split(
            [self.reduce_dim, 2 * self.reduce_dim], dim=1
        )
        with torch.autocast(down.device.type, enabled=False):
            mixed = F.linear(down.float(), w_map) + F.linear(self.prior_scale * priors, w_prior)
            return F.relu(mixed + state.bias[:, None, None])  # (B, Q, N, E)

    def _classify(self, fused: Tensor, grid: tuple[int, int], state: SupportState) -> Tensor:
        if self.conv_classifier is None:
            with torch.autocast(fused.device.type, enabled=False):
                return torch.einsum("bqne,be->bqn", fused, state.classifier).unflatten(-1, grid)
        maps = fused.flatten(0, 1).transpose(1, 2).unflatten(-1, grid)  # (B * Q, E, h, w)
        scores = self.conv_classifier(maps).float().unflatten(0, fused.shape[:2])  # (B, Q, 2, h, w)
        return scores[:, :, 1] - scores[:, :, 0]  # sigmoid of the difference = softmax of the pair

    @staticmethod
    def probability(answer: Segmentation, state: SupportState, size: tuple[int, int]) -> Tensor:
        """Probability (B, Q, H, W) at the input's size (2.8); abnormality where no support has foreground."""
        with torch.autocast(answer.logits.device.type, enabled=False):
            learned = F.interpolate(
                answer.logits.float(), size, mode="bilinear", align_corners=False
            ).sigmoid()
            anomaly = F.interpolate(answer.abnormal.float(), size, mode="bilinear", align_corners=False)
            return torch.where(state.foreground[:, None, None, None], learned, anomaly)


class Projections(nn.Module):
    """The five 1x1 convolutions without bias; grouped because they learn twice as fast (section 4)."""

    def __init__(self, width: int, reduced: int, embedded: int, priors: int) -> None:
        super().__init__()
        self.down_query, self.down_support, self.down_prototype = (
            nn.Linear(width, reduced, bias=False) for _ in range(3)
        )
        self.merge_support = nn.Linear(2 * reduced, embedded, bias=False)
        self.merge_query = nn.Linear(2 * reduced + priors, embedded, bias=False)


class Transformer(nn.Module):
    """Attention blocks shared by query and support, and the projection that makes the classifier z."""

    def __init__(self, dim: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, dropout=dropout) for _ in range(depth))
        self.support_prototype = nn.Linear(dim, dim)

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], trace: Trace | None = None, name: str = ""
    ) -> Tensor:
        """Transform (M, N, E)."""
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, grid)
            if trace is not None:
                trace[f"sa{index}_{name}"] = tokens
        return tokens

    def prototype(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Projected, masked mean (..., E) of (..., N, E) and (..., N); both are linear, so pooled first."""
        mass = match.masked_mean(torch.ones_like(mask)[..., None], mask)  # (..., 1), below 1 by eps
        pooled = match.masked_mean(tokens, mask)  # (..., E)
        return F.linear(pooled, self.support_prototype.weight) + mass * self.support_prototype.bias


def conv_classifier(dim: int, hidden: int = 1024) -> nn.Sequential:
    """Classifier of the ablation without z: no activations in between (2.7)."""
    return nn.Sequential(
        nn.Conv2d(dim, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, 2, 1),
    )
