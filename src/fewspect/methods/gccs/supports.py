"""Supports of episodes: real ones, and synthetic ones of the class texts beside them or instead.

Letters: E episodes, S real supports, K classes, T text width, D width, M supports of both kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect import draws
from fewspect.errors import UserError
from fewspect.methods.classifier import known
from fewspect.methods.gccs import filtering
from fewspect.methods.gccs.generators import Generator
from fewspect.methods.gccs.presets import MANY, Settings
from fewspect.nn.centres import Centres
from fewspect.nn.graph import Graph
from fewspect.types import Support


@dataclass(frozen=True, slots=True)
class GccsState:
    """What is known before a query comes.

    Attributes:
        feature: (E, M, D) supports as the image encoder made them, synthetic ones first.
        label: (E, M) 0..K - 1.
        weight: (E, M) how many real supports each counts for; 0 = not there.
        classes: K.
        shots: Real supports per class, rounded down.
        text: (E, K, T) or None.
        all_real: No support is synthetic.
    """

    feature: Tensor
    label: Tensor
    weight: Tensor
    classes: int
    shots: int
    text: Tensor | None
    all_real: bool = False


@dataclass(frozen=True, slots=True)
class Supports:
    """How supports are put together.

    Attributes:
        generator: Makes synthetic ones; None = there are none.
        settings: See ``presets``.
        graphs: See ``presets.graphs``.
        centres: For the filter.
        seed: Of the samples and of their choice.
    """

    generator: Generator | None
    settings: Settings
    graphs: Mapping[tuple[bool, bool], Graph]
    centres: Centres
    seed: int

    def state(self, support: Support, index: list[int]) -> GccsState:
        """Real and synthetic supports of episodes (E, S, V, D) with these indices."""
        feature = known(support.feature).float().mean(-2)  # (E, S, D)
        label, text = support.label - 1, support.text
        classes = len(support.classes) if text is None else text.shape[-2]
        counts = F.one_hot(label, classes).sum(1) if label.shape[1] else label.new_zeros(len(label), classes)
        shots = int(counts.amin()) if counts.numel() else 0
        weight = torch.ones_like(label, dtype=torch.float32)
        enough = not self.settings.samples_few and bool((counts > 0).all()) and bool(counts.numel())
        if self.generator is None or enough:
            return GccsState(feature, label, weight, classes, shots, text, all_real=True)
        if text is None:
            raise UserError("The classes have no texts.", "Set data.text, or method.generator=none.")
        made = self._synthetic(text, index)  # (E, K, pool, D)
        kept = self._kept(made, feature, label, counts)  # (E, K, pool) weights
        number = int((kept > 0).sum(-1).amax()) if kept.numel() else 0
        first = torch.argsort(kept, dim=-1, descending=True, stable=True)[..., :number]
        made = made.gather(2, first[..., None].expand(-1, -1, -1, made.shape[-1]))
        kept = kept.gather(2, first)
        own = filtering.order(classes, number, label.device).expand(len(label), -1)
        return GccsState(
            torch.cat([filtering.slots(made), feature], 1),
            torch.cat([own, label], 1),
            torch.cat([filtering.slots(kept[..., None])[..., 0], weight], 1),
            classes,
            shots,
            text,
            all_real=number == 0,
        )

    def _synthetic(self, text: Tensor, index: list[int]) -> Tensor:
        """Candidates (E, K, pool, D): of every text the same ones, in an order of the episode's own."""
        assert self.generator is not None
        if not self.generator.known:
            raise UserError(
                "The generator has not seen any class.", "Run mode=train, or name a run (run=<folder>)."
            )
        pool = max(self.settings.pool, self.settings.samples, self.settings.samples_few)
        unique, place = torch.unique(text.flatten(0, 1), dim=0, return_inverse=True)
        bank = torch.cat([self._bank(row, pool) for row in unique])  # (U, pool, D)
        order = [
            torch.from_numpy(draws.rng(self.seed, "synthetic", i).random((text.shape[1], pool)).argsort(-1))
            for i in index
        ]
        chosen = torch.stack(order).to(text.device)  # (E, K, pool)
        return bank[place.view(text.shape[:2])[..., None], chosen]

    def _bank(self, text: Tensor, pool: int) -> Tensor:
        """Samples (1, pool, D) of one text, a pure function of (seed, text)."""
        assert self.generator is not None
        number = draws.key(0, text.detach().cpu().float().numpy().tobytes().hex())
        return self.generator.sample(text[None].float(), pool, draws.generator(self.seed, "class", number))

    def _kept(self, made: Tensor, feature: Tensor, label: Tensor, counts: Tensor) -> Tensor:
        """Weights (E, K, pool) of the candidates.

        Classes without real supports beside classes that have some (generalised zero-shot) are the only ones
        that get synthetic ones.
        """
        s, has = self.settings, counts > 0  # (E, K)
        few = bool(has.all())
        number = s.samples_few if few else s.samples
        if few and s.filter != "none" and number and counts.amin() == counts.amax():
            shares = self._shares(made, feature, label, int(counts[0, 0]))
            kept = filtering.keep(shares, s.filter, number)
        else:
            kept = (torch.arange(made.shape[2], device=made.device) < number).expand(made.shape[:3])
        kept = kept & (~has | has.all(1, keepdim=True))[..., None]
        each = torch.ones_like(kept, dtype=torch.float32)
        if s.syn_shots:
            each = s.syn_shots / kept.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(kept, each, 0.0)

    def _shares(self, made: Tensor, feature: Tensor, label: Tensor, shot: int) -> Tensor:
        """What the real supports of an episode say of its candidates, (E, K, pool, K)."""
        assert self.generator is not None
        order = torch.argsort(label, dim=1, stable=True)[..., None].expand(-1, -1, feature.shape[-1])
        real = feature.gather(1, order).unflatten(1, (made.shape[1], shot))  # (E, K, shot, D)
        parts = [self.generator.embed(x) for x in (made, real)]
        return filtering.plan(parts[0], parts[1], self.graphs[shot >= MANY, False], self.centres)
