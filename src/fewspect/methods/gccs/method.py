"""GCCS: classes are recognised by supports that are made from their texts, by real ones, or by both.

Dong et al., IEEE TIM 2023 (doi 10.1109/TIM.2023.3329163); specification gccs. Queries are answered together
(transductive): synthetic supports, real supports and queries become nodes of a similarity graph, and class
centres move until the queries are shared out among them.

Shapes: supports (S, V, D) and queries (Q, V, D) of V views, texts (K, T); a leading episode axis E is allowed
everywhere. Labels count from 1.

Example:
    >>> method = Gccs()
    >>> state = method.adapt(support)               # texts, and real features if there are any
    >>> prob = method.predict(features, state).logits.exp()
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.base import of_all_processes
from fewspect.methods.classifier import Classifier, known, one, query, stack
from fewspect.methods.gccs import training
from fewspect.methods.gccs.filtering import Filter
from fewspect.methods.gccs.generators import (
    Contrastive,
    Generator,
    RidgeGaussian,
    TextVector,
    require_one_space,
)
from fewspect.methods.gccs.presets import MANY, Preset, Source, chosen, graphs
from fewspect.methods.gccs.supports import GccsState, Supports
from fewspect.methods.gccs.training import Contrast
from fewspect.metrics.generalised import generalised
from fewspect.metrics.legacy import accuracy_as_coded
from fewspect.nn.centres import Centres, check, finite, recognise
from fewspect.nn.graph import Graph, centred, unit
from fewspect.nn.laplacian_shot import laplacian_shot, means
from fewspect.nn.tim import tim
from fewspect.nn.transport import Transport
from fewspect.types import Episode, Prediction, Support

log = logging.getLogger(__name__)

Recogniser = Literal["centres", "nearest", "laplacian", "tim", "text"]

CONTACT = 0.9
"""Share of queries with an edge to a support below which a warning is due (specification 3.5)."""

COSINE_SCALE = 100.0
"""Factor on cosines of texts and images: CLIP's learned temperature ends there."""

TINY = 1e-12


class Gccs(Classifier):
    """Zero- and few-shot recognition with synthetic supports.

    Args:
        preset: What the options that are None or empty are, see ``presets``.
        generator: ``ridge`` (closed form), ``gan`` (trained), ``text`` (the text vector; one space needed),
            ``none`` (real supports alone).
        samples: Synthetic supports per class, with and without real ones.
        filter: Which of them stay beside real ones, see ``filtering``.
        syn_shots: All synthetic supports of a class count like so many real ones; 0 = each like one.
        recogniser: ``centres`` (graph and transport), or a baseline: ``nearest`` class mean, ``laplacian``,
            ``tim``, ``text`` (cosine to the class text).
        text_weight: ``centres``: factor on the log-probabilities of the texts themselves, added to the
            scores; 0 = none.
        graph: Fields of ``Graph``; ``node: none`` is PT-MAP.
        centres: Fields of ``Centres`` but the transport.
        transport: Fields of ``Transport``.
        contrast: Fields of ``Contrast``.
        chunk_mb: About so many MB are in use at once.
        options: See ``Method``.

    Raises:
        UserError: A preset or value that does not exist, or an option that would do nothing.
    """

    not_exported = "its graph of supports and queries is made anew for every episode"
    fit_kind = "single_pass"  # of the default; other generators set their own
    protocols = ("ways", "features")
    schema: ClassVar[dict[str, Any]] = {
        "graph": Graph,
        "centres": Centres,
        "transport": Transport,
        "contrast": Contrast,
    }

    def __init__(
        self,
        *,
        preset: Preset = "default",
        generator: Source | None = None,
        samples: int | None = None,
        filter: Filter | None = None,
        syn_shots: float | None = None,
        recogniser: Recogniser = "centres",
        text_weight: float = 0.0,
        graph: Mapping[str, Any] | None = None,
        centres: Mapping[str, Any] | None = None,
        transport: Mapping[str, Any] | None = None,
        contrast: Mapping[str, Any] | None = None,
        chunk_mb: float = 64.0,
        **options: Any,  # noqa: ANN401 - optimizer, seed: checked by the base
    ) -> None:
        settings = chosen(preset, generator, samples, filter, syn_shots)
        # what learning means depends on the generator, and the base asks for it while it is built
        kind = {"gan": "gradient", "none": "none"}.get(settings.source, "single_pass")
        self.__dict__["fit_kind"] = kind
        super().__init__(**options)
        self.automatic_optimization = False
        self.preset, self.settings = preset, settings
        if text_weight and recogniser != "centres":
            raise UserError(
                f"method.recogniser={recogniser} does not read method.text_weight={text_weight}.",
                "Set method.recogniser=centres, or method.text_weight=0.",
            )
        self.recogniser, self.text_weight, self.chunk_mb = recogniser, text_weight, chunk_mb
        self.graphs = graphs(settings, graph or {})
        plan = Transport(**{**settings.transport, **(transport or {})})
        self.centres = Centres(**{**settings.centres, **(centres or {})}, transport=plan)
        self.contrast = Contrast(**{**settings.contrast, **(contrast or {})})
        self.generator = self._generator()
        self._contact: list[Tensor] = []
        self._learned = False
        self._compared: list[dict[str, float]] = []
        self._asked: tuple[float, float] | None = None  # synthetic supports and queries per class

    def _generator(self) -> Generator | None:
        made = {"ridge": RidgeGaussian, "text": TextVector}.get(self.settings.source)
        if made is not None:
            return made()
        return self.contrast.generator(self.seed) if self.settings.source == "gan" else None

    @property
    def ready(self) -> bool:
        """Whether it can answer as it is."""
        return self.generator is None or self.generator.known

    # -- learning

    def observe(self, batch: list[Episode]) -> None:
        """Learn in closed form from all that is known of the seen classes.

        Raises:
            UserError: There is nothing to learn from, and the generator needs it.
        """
        if not self._learned:  # every item is the same
            self._learn(batch[0])
            self._learned = True

    def on_train_epoch_start(self) -> None:
        """A pass begins."""
        self._learned = False

    def finish(self) -> None:
        """One pass is enough."""
        self.trainer.should_stop = True

    def _learn(self, seen: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """Scale or solve; features (n, D), labels (n,) and texts (K, T) of the seen classes."""
        assert self.generator is not None
        feature, label, text = _flat(seen.support_feature), seen.support_label - 1, seen.text
        if not len(feature) and not self.generator.needs_seen:
            return feature, label, known(text)
        if not len(feature):
            raise UserError(
                "No class is left to learn from: how texts look is learned from other classes.",
                "Test fewer classes (data.ways.test), use CLIP for both, or method.generator=none.",
            )
        if text is None:
            raise UserError("The classes have no texts.", "Set data.text, or method.generator=none.")
        finite(feature)
        if not self.generator.known or self.fit_kind == "single_pass":
            self.generator.learn(feature, label, text)
            self.generator.keep(origin=torch.tensor(self.seed))
        return feature, label, text

    def training_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Tensor] | None:
        """One step of G after several of its critics; or the closed form."""
        if self.fit_kind != "gradient":
            return super().training_step(batch, batch_idx)
        assert isinstance(self.generator, Contrastive)
        seen = self._learn(batch[0])
        index = (self.current_epoch, batch_idx, self.global_rank)
        parts = training.step(self, self.generator, self.contrast, seen, index=index, seed=self.seed)
        self.log_dict({f"train/{k}": v for k, v in parts.items()}, batch_size=1)
        self.log("train/loss", -parts["g_critic"], prog_bar=True, batch_size=1)
        for schedule in self._schedules():
            schedule.step()
        return {"loss": -parts["g_critic"], **parts}

    def _schedules(self) -> list[Any]:
        found: Any = self.lr_schedulers()
        return found

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's union of formats
        """Two of Adam's kind; the networks are made for the widths of the seen classes first."""
        if self.fit_kind != "gradient":
            return None
        assert isinstance(self.generator, Contrastive)
        _ = self.trainer.estimated_stepping_batches  # makes the loader
        loader: Any = self.trainer.train_dataloader
        self._learn(loader.dataset[0])
        self.generator.to(self.device)
        made, schedules = training.optimisers(self.generator, self.contrast)
        return made, [{"scheduler": s, "interval": "step"} for s in schedules]

    # -- answers

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """Answer episodes; those of one shape together, whatever their classes are."""
        groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, episode in enumerate(batch):
            groups[_shape(episode)].append(place)
        found: dict[int, Prediction] = {}
        with torch.inference_mode():
            for places in groups.values():
                group = [batch[p] for p in places]
                state = self._supports().state(_stacked(group), [e.index for e in group])
                together = self.predict(query(group), state)
                found |= {p: one(together, i) for i, p in enumerate(places)}
        return [found[p] for p in range(len(batch))]

    def adapt(self, support: Support) -> GccsState:
        """Put real supports and synthetic ones of the texts together."""
        feature, label, text = support.feature, support.label, support.text
        if label.ndim == 1:
            feature, label, text = (None if v is None else v[None] for v in (feature, label, text))
        assert label is not None
        whole = replace(support, feature=feature, label=label, text=text)
        return self._supports().state(whole, [0] * len(label))

    def _supports(self) -> Supports:
        generator = None if self.recogniser == "text" else self.generator
        seed = self.seed if generator is None else generator.origin_or(self.seed)
        return Supports(generator, self.settings, self.graphs, self.centres, seed)

    def predict(self, images: Tensor, state: GccsState) -> Prediction:
        """Answer queries (Q, V, D) or (E, Q, V, D).

        Returns:
            ``logits``: logarithms of the plan; ``score`` (Q,) how sure it is that the query belongs to any of
            the classes; ``extra``: ``contact`` and number of ``synthetic`` supports per class of the episode,
            and ``label`` with a dustbin.
        """
        alone = images.ndim == 3
        asked = (images[None] if alone else images).float().mean(-2)  # (E, Q, D)
        asked = asked.expand(len(state.feature), -1, -1)
        plan, unknown, contact = self._solve(state, asked)
        made = (state.weight > 0).sum(1) / state.classes - state.shots  # (E,)
        facts = {"contact": contact, "synthetic": made}
        extra = {k: v[:, None].expand(-1, plan.shape[1]) for k, v in facts.items()}
        score = plan.amax(-1)
        if unknown is not None:
            label = torch.where(unknown > score, -1, plan.argmax(-1) + 1)
            score, extra = 1 - unknown, extra | {"label": label}
        found = Prediction(logits=plan.clamp(min=TINY).log(), score=score, extra=extra)
        return one(found, 0) if alone else found

    def _solve(self, state: GccsState, asked: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Plan (E, Q, K), share of the unknown (E, Q) or None, contact (E,)."""
        graph = self.graphs[state.shots >= MANY, state.all_real]
        evidence = None
        if self.recogniser == "text" or self.text_weight:
            evidence = _by_text(asked, state.text)
        if self.recogniser == "text":
            assert evidence is not None
            return evidence.exp(), None, evidence.new_ones(len(evidence))
        x = torch.cat([state.feature, asked], 1)
        x = self.generator.embed(x) if self.generator is not None and self.generator.known else x
        given = {"weight": state.weight}
        if self.recogniser == "centres":
            evidence = None if evidence is None else self.text_weight * evidence
            found = recognise(
                x, state.label, state.classes, graph, self.centres,
                weight=state.weight, evidence=evidence, chunk_mb=self.chunk_mb,
            )  # fmt: skip
            return found.plan, found.unknown, found.contact
        check(x, state.label, state.classes, state.weight)
        supports = state.label.shape[1]
        if self.recogniser == "nearest":
            z = unit(x)
            mean = unit(means(z[:, :supports], state.label, state.classes, state.weight))
            plan = (self.centres.sharpness * z[:, supports:] @ mean.mT).softmax(-1)
        else:
            there = F.pad(state.weight > 0, (0, asked.shape[1]), value=True)
            z = centred(unit(x), supports, graph.centring, there)
            plan = {"laplacian": laplacian_shot, "tim": tim}[self.recogniser](
                z, state.label, state.classes, **given
            )
        return plan, None, plan.new_ones(len(plan))

    # -- evaluation

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        super().on_validation_epoch_start()
        self._contact, self._compared = [], []

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        super().on_test_epoch_start()
        self._contact, self._compared = [], []

    def _measure(self, batch: list[Episode], split: str) -> dict[str, Any]:
        """Beside the metrics: seen against unseen classes, where only some have real supports."""
        outputs = super()._measure(batch, split)
        for episode, prediction in zip(batch, outputs["predictions"], strict=True):
            self._contact.append(prediction.extra["contact"][:1].cpu())
            asked = len(episode.query_label) / len(episode.classes)
            self._asked = (float(prediction.extra["synthetic"][0]), asked)
            seen = torch.zeros(len(episode.classes), dtype=torch.bool)
            seen[episode.support_label.cpu() - 1] = True
            known = (episode.query_label > 0).cpu()
            truth, scores = (episode.query_label.cpu()[known] - 1), known_logits(prediction)[known]
            values = generalised(truth.numpy(), scores.numpy(), seen.numpy())
            self._compared += [values] if values else []
        return outputs

    def _conclude(self, split: str) -> None:
        """Beside the metrics: seen against unseen, and how many queries are in touch with a support."""
        super()._conclude(split)
        compared, touching = of_all_processes(self._compared), of_all_processes(self._contact)
        for name in compared[0] if compared else ():
            self.log(f"{split}/{name}", float(np.mean([v[name] for v in compared])))
        known_of = [asked for asked in of_all_processes([self._asked]) if asked]
        if self.preset == "coded" and known_of:
            made, asked = known_of[-1]
            accuracy = self._suite(split).compute()["accuracy"]
            self.log(f"{split}/acc_as_coded_inflated", accuracy_as_coded(float(accuracy), made, asked))
        if not touching:
            return
        contact = torch.cat(touching).mean()
        self.log(f"{split}/contact", contact)
        if contact < CONTACT:
            log.warning(
                "Only %.0f %% of the queries have an edge to a support: arbitrary answers for the others. "
                "Try method.graph.cross_k=4, pre_center=split, or node=none.",
                100 * float(contact),
            )


def known_logits(prediction: Prediction) -> Tensor:
    """Logits (Q, K) on the CPU."""
    return known(prediction.logits).float().cpu()


def _by_text(asked: Tensor, text: Tensor | None) -> Tensor:
    """Log-probabilities (E, Q, K) by the cosine to the texts.

    Raises:
        UserError: There is no text, or it lives elsewhere.
    """
    if text is None:
        raise UserError("The classes have no texts.", "Set data.text.")
    require_one_space(asked.shape[-1], text.shape[-1])
    return (COSINE_SCALE * unit(asked) @ unit(text.float()).mT).log_softmax(-1)


def _flat(feature: Tensor | None) -> Tensor:
    return known(feature).float().mean(-2)


def _shape(episode: Episode) -> tuple[object, ...]:
    support, asked = known(episode.support_feature), known(episode.query_feature)
    return support.shape, asked.shape, len(episode.classes), episode.text is None


def _stacked(group: list[Episode]) -> Support:
    """Supports of several episodes as one, texts as well."""
    texts = [e.text for e in group if e.text is not None]
    return replace(stack(group), text=torch.stack(texts) if texts else None)
