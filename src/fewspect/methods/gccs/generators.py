"""From class texts to synthetic features: three generators behind ``sample`` and ``embed``.

``Contrastive``: trained, see ``net`` and ``loss``. ``RidgeGaussian``: closed form, no training.
``TextVector``: the text feature itself, for encoders that have images and texts in one space.

Specification gccs, sections 2.4 and 2.5. What ``sample`` gives and what ``embed`` takes are features as the
image encoder makes them; ``embed`` brings real and synthetic ones alike into the space that the graph
compares.
What was learned, scaling included, is in the state dict; shapes need not be known before one is loaded.

Letters: n samples, K classes, S samples per class, D feature width, T text width.

Example:
    >>> generator = RidgeGaussian()
    >>> generator.learn(torch.randn(40, 8), torch.arange(40) % 4, torch.randn(4, 6))
    >>> generator.sample(torch.randn(2, 6), 5, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 5, 8])
"""

import copy
from abc import abstractmethod
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.methods.gccs.net import Nets, Pair

Space = Literal["feature", "h", "q"]
Scaling = Literal["standard", "minmax", "none"]

RIDGE = tuple(10.0 ** (k / 2) for k in range(-8, 5))
"""Candidates of the ridge's weight, 10^-4 to 10^2, by generalised cross-validation."""

SHRINK = 0.1
"""Share of the mean variance in the within-class covariance."""

SMALL = 1e-6


class Generator(nn.Module):
    """What the three have in common: tensors that are learned and saved."""

    needs_seen = True
    """Whether classes with images are needed to learn from."""

    def keep(self, **tensors: Tensor) -> None:
        """Replace learned tensors; every one is saved under its name."""
        for name, value in tensors.items():
            self.register_buffer(name, value.detach().clone())

    @property
    def known(self) -> bool:
        """Whether it can make samples."""
        return bool(dict(self.named_buffers(recurse=False)))

    def origin_or(self, seed: int) -> int:
        """Seed of the run that learned, so that its checkpoint makes the same samples anywhere."""
        kept = dict(self.named_buffers(recurse=False)).get("origin")
        return seed if kept is None else int(kept)

    @abstractmethod
    def learn(self, feature: Tensor, label: Tensor, text: Tensor) -> None:
        """Learn in closed form.

        Args:
            feature: (n, D) of seen classes.
            label: (n,) 0..K - 1.
            text: (K, T).
        """

    @abstractmethod
    def sample(self, text: Tensor, number: int, random: torch.Generator | None = None) -> Tensor:
        """Synthetic features (K, number, D) of classes with these texts (K, T)."""

    def embed(self, feature: Tensor) -> Tensor:
        """Features (..., D) in the space of the graph."""
        return feature

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        self.keep(**{k: torch.empty_like(v) for k, v in own.items() if "." not in k})
        super()._load_from_state_dict(state_dict, prefix, *rest)


class RidgeGaussian(Generator):
    """Class means by ridge regression on texts, one covariance for all classes.

    W = (T T' + l I)^-1 (M - m) over the K seen classes, texts and means centred; l is chosen by generalised
    cross-validation from one eigendecomposition of T T'. The pooled covariance is shrunk towards its mean
    variance, so that it has a Cholesky factor for any number of samples.
    """

    def learn(self, feature: Tensor, label: Tensor, text: Tensor) -> None:
        """See ``Generator``.

        Raises:
            UserError: Fewer than two seen classes.
        """
        means, within = class_means(feature.double(), label, len(text))
        if len(text) < 2:
            raise UserError(
                "A generator that has seen one class cannot know what texts mean.",
                "Give two or more classes with images to train on.",
            )
        text = text.double()
        text_mean, mean = text.mean(0), means.mean(0)
        centred, target = text - text_mean, means - mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)  # (K,), (K, K)
        rotated = vectors.T @ target  # (K, D)
        weight = min(RIDGE, key=lambda w: float(_gcv(values.clamp(min=0), rotated, w)))
        dual = vectors @ (rotated / (values.clamp(min=0) + weight)[:, None])
        covariance = within.T @ within / max(1, len(within) - len(text))
        level = covariance.diagonal().mean().clamp(min=SMALL)
        covariance = (1 - SHRINK) * covariance
        covariance.diagonal().add_(SHRINK * level)
        self.keep(
            text_mean=text_mean.float(),
            mean=mean.float(),
            slope=(centred.T @ dual).float(),  # (T, D)
            factor=torch.linalg.cholesky(covariance).float(),  # (D, D)
            ridge=torch.tensor(weight),
        )

    def mean_of(self, text: Tensor) -> Tensor:
        """Predicted class means (K, D)."""
        return self.get_buffer("mean") + (text - self.get_buffer("text_mean")) @ self.get_buffer("slope")

    def sample(self, text: Tensor, number: int, random: torch.Generator | None = None) -> Tensor:
        """See ``Generator``."""
        factor = self.get_buffer("factor")
        noise = torch.randn(len(text), number, len(factor), generator=random).to(factor)
        return self.mean_of(text)[:, None] + noise @ factor.T


class TextVector(Generator):
    """The text feature of a class as its one sample, moved by the gap between images and texts.

    The gap is the mean difference of class mean and text over the seen classes; without seen classes it is
    zero. Every sample of a class is the same.
    """

    needs_seen = False

    @property
    def known(self) -> bool:
        """Nothing needs to be learned."""
        return True

    def learn(self, feature: Tensor, label: Tensor, text: Tensor) -> None:
        """See ``Generator``.

        Raises:
            UserError: Images and texts are not in one space.
        """
        require_one_space(feature.shape[-1], text.shape[-1])
        means, _ = class_means(F.normalize(feature.float(), dim=-1), label, len(text))
        self.keep(gap=(means - F.normalize(text.float(), dim=-1)).mean(0))

    def sample(self, text: Tensor, number: int, random: torch.Generator | None = None) -> Tensor:
        """See ``Generator``; nothing is drawn."""
        del random
        gap = dict(self.named_buffers()).get("gap", text.new_zeros(()))
        return (F.normalize(text, dim=-1) + gap)[:, None].expand(-1, number, -1)


class Contrastive(Generator):
    """The trained generator; its networks are made at the first sight of the data.

    Args:
        space: What ``embed`` gives: h of E, its unit vector q, or the scaled ``feature`` itself.
        scaling: ``standard``: mean off, divided by one deviation for all dimensions; ``minmax``: every
            dimension to [0, 1] (parent, together with ``end: relu``); ``none``.
        sizes: Arguments of ``Nets`` but the widths of features and texts.
        seed: Of the first weights.
    """

    def __init__(
        self,
        space: Space = "h",
        scaling: Scaling = "standard",
        *,
        seed: int = 0,
        **sizes: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self.space, self.scaling, self.seed, self.sizes = space, scaling, seed, sizes
        self.nets: Nets | None = None
        self.average: Pair | None = None

    @property
    def known(self) -> bool:
        """Whether the networks are there."""
        return self.nets is not None

    def begin(self, feature: int, text: int) -> Self:
        """Make the networks for these widths, once."""
        if self.nets is None:
            random = torch.Generator().manual_seed(self.seed)
            self.nets = Nets(feature, text, random=random, **self.sizes)
            self.average = copy.deepcopy(self.nets.G).requires_grad_(False)
        return self

    def learn(self, feature: Tensor, label: Tensor, text: Tensor) -> None:
        """Take the scale of the seen features; the networks are trained by the method."""
        del label
        feature = feature.float()
        shift, scale = torch.zeros(feature.shape[1]), torch.ones(feature.shape[1])
        if self.scaling == "standard":
            shift = feature.mean(0)
            scale = (feature - shift).std().clamp(min=SMALL).expand_as(shift)
        elif self.scaling == "minmax":
            shift = feature.amin(0)
            scale = (feature.amax(0) - shift).clamp(min=SMALL)
        self.keep(shift=shift, scale=scale)
        self.begin(feature.shape[1], text.shape[1])

    def scaled(self, feature: Tensor) -> Tensor:
        """Features as the networks see them."""
        return (feature.float() - self.get_buffer("shift")) / self.get_buffer("scale")

    def sample(self, text: Tensor, number: int, random: torch.Generator | None = None) -> Tensor:
        """See ``Generator``."""
        noise = torch.randn(len(text), number, self.trained().noise, generator=random).to(text)
        assert self.average is not None  # made with the networks
        made = self.average(noise, text[:, None].expand(-1, number, -1))
        return made * self.get_buffer("scale") + self.get_buffer("shift")

    def embed(self, feature: Tensor) -> Tensor:
        """See ``Generator``; h is not negative, so that cosines are not, either."""
        scaled = self.scaled(feature)
        if self.space == "feature":
            return scaled
        h, q = self.trained().E(scaled)
        return h if self.space == "h" else q

    @torch.no_grad()
    def average_in(self, share: float) -> None:
        """Move the running mean of G towards G; ``share`` of the old mean stays."""
        assert self.average is not None  # made with the networks
        for old, new in zip(self.average.parameters(), self.trained().G.parameters(), strict=True):
            old.lerp_(new, 1 - share)

    def trained(self) -> Nets:
        """The networks.

        Raises:
            UserError: There are none yet.
        """
        if self.nets is None:
            raise UserError("The generator has not been trained.", "Run mode=train, or choose another one.")
        return self.nets

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401
        key = f"{prefix}nets.E.fc1.weight"
        if key in state_dict:
            text = state_dict[f"{prefix}nets.D.fc1.weight"].shape[1] - state_dict[key].shape[1]
            self.begin(state_dict[key].shape[1], text)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def class_means(feature: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means (K, D), and the features (n, D) with their own class's mean taken off.

    Raises:
        UserError: A class has no feature.
    """
    number = torch.bincount(label, minlength=classes)
    if bool((number == 0).any()):
        missing = int((number == 0).nonzero()[0])
        raise UserError(f"Seen class {missing} has no image.", "Leave it out, or give images.")
    sums = feature.new_zeros(classes, feature.shape[1]).index_add_(0, label, feature)
    means = sums / number[:, None]
    return means, feature - means[label]


def require_one_space(feature: int, text: int) -> None:
    """Refuse widths that show that images and texts were encoded by strangers.

    Raises:
        UserError: They differ.
    """
    if feature != text:
        raise UserError(
            f"Image features have width {feature}, text features {text}: they are not comparable.",
            "Use the two halves of one CLIP model, or method.generator=ridge with classes to learn from.",
        )


def _gcv(values: Tensor, rotated: Tensor, weight: float) -> Tensor:
    """Generalised cross-validation: residuals over the squared share of free dimensions."""
    left = weight / (values + weight)  # I - hat matrix
    return (left[:, None] * rotated).square().sum() / left.sum().square()
