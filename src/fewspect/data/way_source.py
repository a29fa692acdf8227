"""Where N-way episodes come from: images and a backbone, or feature files; texts; disjoint class parts."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fewspect.data import features
from fewspect.data.embedding import embedded
from fewspect.data.features import FeatureSet, Token
from fewspect.data.index import Index
from fewspect.data.splits import group_of
from fewspect.data.ways import Everything, SeenClasses, WayEpisodes, WayOptions, described
from fewspect.draws import key, rng
from fewspect.errors import UserError
from fewspect.types import Sample

log = logging.getLogger(__name__)

LEAST_TRAIN = 4
"""So many seen classes are left before any is taken for validation."""

WayDatasets = SeenClasses | WayEpisodes | Everything


@dataclass(frozen=True, slots=True)
class Parts:
    """Classes by what they are for.

    Attributes:
        seen: Trained on.
        val: Validated on; empty where there are too few.
        test: Tested.
    """

    seen: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


class WaySource:
    """Features and texts of all classes, read once.

    Args:
        read: Gives the index of images.
        files: Feature files of ``data.support`` and ``data.query``, which replace images.
        text: See ``WayOptions.texts``; or a file of text features (safetensors: ``text`` (C, T), header
            ``classes``).
        options: See ``WayOptions``.
        backbone: For images.
        encoder: For texts.
        side: Side of images in pixels.
        seed: Of the draws.
    """

    def __init__(
        self,
        read: Callable[[], Index],
        files: tuple[str | None, str | None],
        text: str | None,
        options: WayOptions,
        *,
        backbone: Any = None,  # noqa: ANN401 - a backbone; data may not import their type
        encoder: Any = None,  # noqa: ANN401 - a text encoder, likewise
        side: int = 128,
        seed: int = 0,
    ) -> None:
        self.read, self.files, self.text, self.options = read, files, text or options.texts, options
        self.backbone, self.encoder, self.side, self.seed = backbone, encoder, side, seed

    @cached_property
    def one_space(self) -> bool:
        """Whether texts and images are encoded by the two halves of one model."""
        partner = getattr(self.encoder, "partner", "")
        return bool(partner) and partner == getattr(self.backbone, "name", None)

    @cached_property
    def token(self) -> Token:
        """The class token alone where texts are compared with it."""
        return "class" if self.one_space else self.options.token

    @cached_property
    def pool(self) -> FeatureSet:
        """Everything, with texts.

        Raises:
            UserError: No images and no files, or classes without texts.
        """
        made = self._from_files() if self.files[0] else self._from_images()
        return made if made.text is not None else self._with_text(made)

    @cached_property
    def parts(self) -> Parts:
        """Disjoint lists of classes.

        Raises:
            UserError: A class that is to be tested does not exist.
        """
        classes = self.pool.classes
        test = self._test(classes)
        left = [c for c in classes if c not in test]
        number = min(round(self.options.val * len(left)), len(left) - LEAST_TRAIN)
        order = rng(self.seed, "val classes").permutation(len(left))
        val = {left[int(i)] for i in order[:number]} if number >= 2 else set()
        parts = Parts(tuple(c for c in left if c not in val), tuple(c for c in left if c in val), tuple(test))
        log.info("classes: %d seen, %d for validation, tested: %s", *map(len, (parts.seen, parts.val)), test)
        return parts

    def dataset(self, part: str, shot: int | None, *, length: int | None = None) -> WayDatasets:
        """Training or evaluation items of a part; validation is zero-shot, since it selects a generator.

        Args:
            part: ``train``, ``val``, ``test`` or ``predict``.
            shot: Supports per class; None = 0. Generalised test: per seen class, None and 0 = all.
            length: Training items per epoch.

        Raises:
            UserError: Episodes cannot be drawn.
        """
        o = replace(self.options, token=self.token)
        if part == "train":
            return SeenClasses(self._seen(tested=False), token=self.token, length=length)
        if part == "val":
            own = self.parts.val or self.parts.seen or self.parts.test
            o = replace(o, way=min(o.way or len(own), len(own)), unknown=0, imbalance=None)
            return WayEpisodes(self.pool.only(own), "val", o, shot=0, runs=o.val_runs, seed=self.seed)
        if o.generalised:
            return self._everything(o, shot)
        pool = self.pool.only(self.parts.test)
        if o.way is not None and o.way + o.unknown > len(pool.classes) >= 2:
            log.warning("%d classes are tested: episodes of all of them.", len(pool.classes))
            o = replace(o, way=len(pool.classes) - o.unknown)
        return WayEpisodes(pool, "test", o, shot=shot or 0, runs=o.runs, seed=self.seed)

    def _everything(self, options: WayOptions, shot: int | None) -> Everything:
        seen, classes = self._seen(tested=False), (*self.parts.seen, *self.parts.test)
        held, unseen = self._seen(tested=True), self.pool.only(self.parts.test)
        asked = replace(
            self.pool.only(classes),
            feature=torch.cat([held.feature, unseen.feature]),
            label=torch.cat([held.label, unseen.label + len(seen.classes)]),
            ids=(), groups=(), paths=(), thumb=None,
        )  # fmt: skip
        return Everything(seen, asked, options, shot=shot, seed=self.seed)

    def _seen(self, *, tested: bool) -> FeatureSet:
        """Images of the seen classes; those that are held back for a generalised test apart."""
        seen = self.pool.only(self.parts.seen)
        if not self.options.generalised:
            return seen
        limit = self.options.seen_test * 2**63
        names = [g or f"#{i}" for i, g in enumerate(seen.groups or [""] * len(seen))]
        held = [key(self.seed, f"seen test/{name}") < limit for name in names]
        return seen.take([i for i, h in enumerate(held) if h == tested])

    def _test(self, classes: Sequence[str]) -> list[str]:
        wanted = self.options.test
        if wanted == "all":
            return list(classes)
        if wanted is not None:
            names = [wanted] if isinstance(wanted, str) else list(wanted)
            if unknown := sorted(set(names) - set(classes)):
                raise UserError(
                    f"data.ways.test: no class {', '.join(unknown)}.", f"There are: {', '.join(classes)}."
                )
            return names
        if held := [c for c in classes if c in self._held_out]:
            return held
        return list(classes) if self.one_space else list(classes)[-max(2, len(classes) // 3) :]

    @cached_property
    def _held_out(self) -> set[str]:
        """Classes that the reader, or the query file, sets apart."""
        if self.files[0]:
            if self.files[1] is None:
                return set()
            return set(features.read(self.files[1]).classes)
        index = self.read()
        trained = {_name(index, s) for s in index.samples if s.split != "test"}
        tested = {_name(index, s) for s in index.samples if s.split == "test"}
        several = len({s.product for s in index.samples if s.label > 0}) > 1
        return {f"{p}/{c}" if several else c for p, c in tested - trained}

    def _from_images(self) -> FeatureSet:
        if self.backbone is None:
            raise UserError("Images need a backbone here.", "Set data.backbone, or give data.support.")
        return embedded(self.read(), self.backbone, side=self.side, cache=self.options.cache)

    def _from_files(self) -> FeatureSet:
        first = features.read(str(self.files[0]))
        if self.files[1] is None:
            return first
        second = features.read(self.files[1])
        features.require_alike(first, second, (str(self.files[0]), self.files[1]))
        classes = tuple(dict.fromkeys((*first.classes, *second.classes)))
        sets = [s.only([c for c in classes if c in s.classes]) for s in (first, second)]
        place = [torch.tensor([classes.index(c) for c in s.classes]) for s in sets]
        text = None
        if sets[0].text is not None and sets[1].text is not None:
            rows = dict(zip(sets[0].classes, sets[0].text, strict=True))
            rows |= dict(zip(sets[1].classes, sets[1].text, strict=True))
            text = torch.stack([rows[c] for c in classes])
        groups = tuple(g for s in sets for g in (s.groups or ("",) * len(s)))
        return FeatureSet(
            torch.cat([s.feature for s in sets]),
            torch.cat([p[s.label] for p, s in zip(place, sets, strict=True)]),
            classes,
            text=text,
            groups=groups,
            config=first.config,
        )

    def _with_text(self, made: FeatureSet) -> FeatureSet:
        if self.text and not str(self.text).endswith(".json"):
            rows = read_texts(self.text)
            if missing := [c for c in made.classes if c not in rows]:
                raise UserError(
                    f"{self.text}: no text feature of {', '.join(missing[:5])}.", "Write it again."
                )
            return replace(made, text=torch.stack([rows[c] for c in made.classes]))
        if self.encoder is None:
            raise UserError("Class texts need an encoder here.", "Set data.encoder, or give text features.")
        texts = described(made.classes, self.text)
        same = [c for c, t in zip(made.classes, texts, strict=True) if texts.count(t) > 1]
        if same:
            log.warning("Classes with the very same text cannot be told apart by it: %s.", ", ".join(same))
        joined = tuple("; ".join(t) for t in texts)
        return replace(made, text=self.encoder(texts).float(), texts=joined)


def _name(index: Index, sample: Sample) -> tuple[str, str]:
    return sample.product, index.classes[sample.label - 1] if sample.label > 0 else group_of(sample)


def read_texts(path: str) -> dict[str, torch.Tensor]:
    """Text features by class, of a safetensors file.

    Raises:
        UserError: Missing, damaged, or not such a file.
    """
    hint = "Expected: safetensors with 'text' (C, T) and a JSON list 'classes' in the header."
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of class texts.", hint)
    try:
        with safe_open(path, "pt") as file:
            text, names = file.get_tensor("text"), json.loads((file.metadata() or {})["classes"])
            return dict(zip(map(str, names), text.float(), strict=True))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a file of text features ({error}).", hint) from error
