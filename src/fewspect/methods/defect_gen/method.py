"""Defect-Gen: one diffusion model of image and mask together, trained as two networks and drawn from by both.

Yang et al., *Defect Spectrum* (ECCV 2024, arXiv 2310.17316); specification defect_gen. ``stage=large`` trains
the network that decides the layout, ``stage=small`` the one with a narrow field of view that paints the
texture; a sample goes down from noise through the large one to ``switch`` and on through the small one.

Example:
    >>> method = DefectGen(stage="large")
    >>> method.setup_data(data.info)  # doctest: +SKIP
    >>> method.generate([0, 1])[0].image.shape  # doctest: +SKIP
    torch.Size([3, 64, 64])
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fewspect import draws
from fewspect.errors import UserError
from fewspect.methods.defect_gen import loss, stages
from fewspect.methods.defect_gen.augment import clear, cropped, turned
from fewspect.methods.defect_gen.checkpoint import load_reference
from fewspect.methods.defect_gen.codec import RGB
from fewspect.methods.defect_gen.drawing import Denoiser, Noise, Sampling, Solver, blended, drawn
from fewspect.methods.defect_gen.ema import Average
from fewspect.methods.defect_gen.net import UNet, receptive_field
from fewspect.methods.defect_gen.presets import Preset, both, chosen, sizes
from fewspect.methods.defect_gen.sampler import Stage
from fewspect.methods.defect_gen.schedule import Schedule
from fewspect.methods.defect_gen.stages import Blueprint
from fewspect.methods.generator import Generator, Wish
from fewspect.nn.loading import digest
from fewspect.nn.windows import squash, squash_labels
from fewspect.types import IGNORE, DataInfo, Episode, Generated

log = logging.getLogger(__name__)

STEPS = 1000
"""T."""

PREVIEW = 6
"""Samples that are shown while it learns."""

TIMES = 4
"""Timesteps at which a validation image is judged."""


class DefectGen(Generator):
    """Draws defective pictures with their masks; one instance trains one of the two networks.

    Args:
        stage: Which network is trained: ``large`` or ``small``.
        preset: What the options that are None or empty are, see ``presets``.
        small: Drawing: run folder or checkpoint of the small network; None = this network does all.
        net: Arguments of ``UNet`` that differ from the preset, see ``sizes``.
        predict: What the network says: ``velocity``, ``x0`` or ``noise``.
        gamma: Of the min-SNR weights; 0 = every timestep alike.
        focus: Share of training timesteps on the stage's own side of ``switch``.
        decay: Of the averaged weights.
        turn: Training pictures are turned and shifted: ``none``, ``mirror``, ``any``.
        crop: Train on squares of so many pixels out of the pictures; None = whole pictures.
        keep: Hold the training pictures on the device and draw batches from them.
        switch: Time of the hand-over in [0, 1]: the large network above, the small one below.
        steps: Calls of the networks per sample.
        solver: ``dpm`` (DPM-Solver++), ``ddim``, or ``original`` (with 1000 steps).
        released: Two full countdowns, as the released program does.
        clip: Clamp what the networks take for the clean picture to [-1, 1].
        guidance: How strongly the wished classes are followed; 1 = as learned, without a second call.
        resample: How often a step is repeated where a part of the picture is given.
        weights: ``average`` or ``raw``.
        options: See ``Method``.

    Raises:
        UserError: A preset, size or option that does not exist.
    """

    protocols: ClassVar[tuple[str, ...]] = ("labelled",)
    rarity: Tensor
    schema: ClassVar[dict[str, Any]] = {"net": sizes}

    def __init__(
        self,
        *,
        stage: Stage = "large",
        preset: Preset = "tiny",
        small: str | None = None,
        net: Mapping[str, Any] | None = None,
        predict: loss.Prediction | None = None,
        gamma: float | None = None,
        focus: float | None = None,
        decay: float | None = None,
        turn: Literal["none", "mirror", "any"] | None = None,
        crop: int | None = None,
        keep: bool = True,
        switch: float = 0.4,
        steps: int = 20,
        solver: Solver = "dpm",
        released: bool = False,
        clip: bool = True,
        guidance: float = 1.0,
        resample: int = 3,
        weights: Literal["average", "raw"] | None = None,
        **options: Any,  # noqa: ANN401 - those of Method
    ) -> None:
        super().__init__(**options)
        given = {
            "predict": predict and both(predict),
            "gamma": gamma,
            "focus": focus,
            "decay": decay,
            "turn": turn,
        }
        self.settings = chosen(preset, **given, weights=weights)
        self.stage: Stage = stage
        self.sizes = {**self.settings.net[stage], **sizes(**(net or {}))}
        self.crop, self.keep, self.small = crop, keep, small
        self.sampling = Sampling(
            switch, steps, solver, released=released, clip=clip, guidance=guidance, resample=resample
        )
        _ = self.sampling.calls(STEPS, 1.0)  # refuses wrong numbers before anything is trained
        if small is not None and stage == "small":
            raise UserError(
                f"method.small={small} goes with a large network, method.stage=small is no such.",
                "Draw with mode=generate run=<large run> method.small=<small run>.",
            )
        self.schedule = Schedule(STEPS)
        self._other: tuple[Blueprint, UNet] | None = None
        self._digests: dict[str, str] = {}
        self._pool: tuple[Tensor, Tensor, Tensor] | None = None
        self._shown: list[tuple[tuple[str, ...], str]] = []

    def setup_data(self, info: DataInfo) -> None:
        """Build the network for the data's classes; see ``Method``."""
        super().setup_data(info)
        settings = self.settings
        self.plan = Blueprint(
            stage=self.stage,
            classes=info.classes,
            products=info.products,
            side=info.side,
            net=self.sizes,
            predict=settings.predict[self.stage],
            steps=STEPS,
            low=settings.low,
            asked=settings.unasked is not None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.key(self.seed, f"weights/{self.stage}"))
            self.net = self.plan.build().to(memory_format=torch.channels_last)
        if self.crop is not None:
            stages.require_cells(self.net, min(self.crop, info.side), "method.crop")
        self.register_buffer("rarity", torch.ones(self.plan.codec.channels))
        self.average = Average(self.net, settings.decay, warmup=settings.warmup)
        if self.net.mid_block is None and not self.sizes.get("attention"):
            field = self.net.patch * receptive_field(self.net.levels, self.net.blocks)
            log.info("field of view of the %s network: %d of %d pixels", self.stage, field, info.side)

    @property
    def classes(self) -> tuple[str, ...]:
        """The data's classes."""
        return self.info.classes

    # -- training

    def on_fit_start(self) -> None:
        """Take the training pictures onto the device."""
        if self.keep:
            every = list(cast(Any, self.trainer).datamodule.dataset("train"))
            data = clear(every, self.plan.side) or every
            if len(data) < len(every):
                told = "%d of %d training pictures are left out: at data.side=%d their mask has no pixel."
                log.warning(told, len(every) - len(data), len(every), self.plan.side)
            self.observe(data)
            images, masks, conditions = self._stacked(data)
            self._pool = ((images * 255).round().to(torch.uint8), masks, conditions)
            if self.settings.parts:
                self.rarity[RGB:] = loss.rarity(masks, len(self.classes))

    def losses(self, batch: Sequence[Episode] | Sequence[int]) -> dict[str, Tensor]:
        """Error of colours and of classes at drawn timesteps.

        Args:
            batch: Episodes, or with ``keep`` as many numbers as pictures are to be drawn.
        """
        images, masks, conditions = self._batch(batch)
        settings = self.settings
        x0 = turned(self.plan.codec.encode(images, masks), settings.turn)
        x0 = x0 if self.crop is None else cropped(x0, self.crop)
        if settings.unasked:
            hidden = torch.rand(len(x0), 1, device=x0.device) < settings.unasked
            conditions = conditions.masked_fill(hidden, 0)
        low, high = self._own
        u, inside = torch.rand(2, len(x0), device=x0.device)
        own = low + u * (high - low)
        t = torch.where(inside < settings.focus, own, u * STEPS).long().clamp(max=STEPS - 1)
        return self._error(self.net, x0, torch.randn_like(x0), t, conditions)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Step, and average: before anything is saved."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.net)

    def validation_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Any]:
        """Error of the averaged weights, at the same timesteps and with the same noise every time."""
        del batch_idx
        images, masks, conditions = self._stacked(batch)
        x0 = self.plan.codec.encode(images, masks)
        low, high = self._own
        total = []
        for one, condition, episode in zip(x0, conditions, batch, strict=True):
            r = draws.generator(self.seed, "validation", episode.index)
            u = torch.rand(TIMES, generator=r)
            t = (low + (torch.arange(TIMES) + u) / TIMES * (high - low)).long()
            noise = torch.randn(TIMES, *one.shape, generator=r).to(x0)
            clean, asked = one.expand(TIMES, *one.shape), condition.expand(TIMES, *condition.shape)
            parts = self._error(self.average.net, clean, noise, t.to(x0.device), asked)
            total.append(torch.stack([self.loss_weights.get(k, 1.0) * v for k, v in parts.items()]).sum())
        value = torch.stack(total).mean()
        self.log("val/loss", value, prog_bar=True, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return {"loss": value}

    @property
    def _own(self) -> tuple[int, int]:
        """Timesteps of this stage's part of a descent."""
        at = self.sampling.at(STEPS)
        return (min(at, STEPS - 1), STEPS) if self.stage == "large" else (0, at)

    def _error(
        self, net: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, condition: Tensor
    ) -> dict[str, Tensor]:
        settings = self.settings
        output = net(self.schedule.add_noise(x0, noise, t), t, condition).float()
        aim = loss.target(self.schedule, self.plan.predict, x0, noise, t)
        weight = loss.min_snr(self.schedule, self.plan.predict, t, settings.gamma) if settings.gamma else None
        if not settings.parts:
            return {"joint": loss.squared(output, aim, weight)}
        scale = self.rarity.sqrt()[:, None, None]  # of the squared error: rare classes count as much
        output, aim = scale * output, scale * aim
        rgb = slice(None), slice(RGB)
        rest = slice(None), slice(RGB, None)
        return {
            "image": loss.squared(output[rgb], aim[rgb], weight),
            "mask": loss.squared(output[rest], aim[rest], weight),
        }

    def _batch(self, batch: Sequence[Episode] | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        if batch and isinstance(batch[0], Episode):
            episodes = cast(Sequence[Episode], batch)
            return self._stacked(clear(episodes, self.plan.side) or episodes)
        assert self._pool is not None  # numbers come with ``keep``
        which = torch.randint(len(self._pool[0]), (len(batch),))
        images, masks, conditions = (part[which.to(part.device)] for part in self._pool)
        return images.float() / 255, masks, conditions

    def _stacked(self, batch: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1], labels (B, H, W) and conditions (B, M) on the device."""
        side, images, masks, conditions = self.plan.side, [], [], []
        for episode in batch:
            image, mask = episode.query_image[0], squash_labels(episode.query_mask[0], side)
            images.append(image if image.is_floating_point() else squash(image, side))
            masks.append(mask.masked_fill(mask == IGNORE, 0))
            conditions.append(self.plan.ask(*self._told(episode)))
        images, masks, conditions = (torch.stack(p).to(self.device) for p in (images, masks, conditions))
        return images, masks, conditions

    def _told(self, episode: Episode) -> tuple[tuple[str, ...], str]:
        """Classes that a training picture shows at the network's size, and its product."""
        labels = squash_labels(episode.query_mask[0], self.plan.side).unique().tolist()
        return tuple(self.classes[k - 1] for k in labels if 0 < k <= len(self.classes)), episode.product

    # -- drawing

    def observe(self, batch: list[Episode]) -> None:
        """Take down which classes appear together, and how often."""
        self._shown += [self._told(episode) for episode in clear(batch, self.plan.side)]

    def generate(self, numbers: Sequence[int]) -> list[Generated]:
        """Draw samples from noise."""
        return self.control(numbers, [Wish()] * len(numbers))

    @torch.no_grad()
    def control(self, numbers: Sequence[int], wishes: Sequence[Wish]) -> list[Generated]:
        """Draw samples; each is a function of (seed, number, wish)."""
        asked = [self._asked(n, w) for n, w in zip(numbers, wishes, strict=True)]
        condition = torch.stack([self.plan.ask(*a) for a in asked]).to(self.device)
        nets = self._nets(condition)
        noise = self._noise(numbers)
        images, masks = drawn(
            self.schedule, nets, self.plan.codec, sampling=self.sampling, noise=noise, wishes=wishes
        )
        made = zip(wishes, asked, images.cpu(), masks.cpu(), strict=True)
        return [self._made(w, names, product, (i, m)) for w, (names, product), i, m in made]

    def _made(
        self, wish: Wish, names: Sequence[str], product: str, drawing: tuple[Tensor, Tensor]
    ) -> Generated:
        image, mask, ground = blended(*drawing, wish)
        origin = {"asked": "+".join(names)} | ({"source": wish.source} if wish.source else {})
        return Generated(image, mask, product, origin, wish.group, ground)

    def preview(self) -> list[Generated]:
        """The first samples; of a small network variations of training pictures: it knows no layout."""
        wishes = [Wish()] * PREVIEW
        if self.stage == "small":
            if self._pool is None or self.sampling.released:  # two countdowns begin with noise
                return []
            images, masks, _ = self._pool
            shown = [k % len(images) for k in range(PREVIEW)]
            start = max(self.sampling.switch, 1 / STEPS)
            pairs = [(images[k].cpu().float() / 255, masks[k].cpu()) for k in shown]
            wishes = [Wish(image=image, labels=mask, start=start) for image, mask in pairs]
        return self.control(range(PREVIEW), wishes)

    def about(self) -> dict[str, Any]:
        """Steps, hand-over, solver, and digests of the networks."""
        self._nets(torch.zeros(1, self.plan.condition))
        return {**self.sampling.plain(), "networks": dict(self._digests)}

    def _noise(self, numbers: Sequence[int]) -> Noise:
        shape = (self.plan.codec.channels, self.plan.side, self.plan.side)

        def noise(stream: str, *index: int) -> Tensor:
            every = [
                torch.randn(shape, generator=draws.generator(self.seed, stream, n, *index)) for n in numbers
            ]
            return torch.stack(every).to(self.device)

        return noise

    def _asked(self, number: int, wish: Wish) -> tuple[tuple[str, ...], str]:
        """Classes and product of a sample: those wished for, else those of a drawn training picture."""
        r = draws.rng(self.seed, "asked", number)
        known = [a for a in self._shown if not wish.product or a[1] == wish.product]
        known = [a for a in known if a[0]] or known  # a defect is wanted where there is one
        if not known:
            known = [((name,), product) for name in self.classes for product in self.info.products or ("",)]
        names, product = known[int(r.integers(len(known)))]
        if wish.mask is not None:
            names = tuple(self.classes[k - 1] for k in wish.mask.unique().tolist() if k)
        return wish.classes or names, wish.product or product

    def _nets(self, condition: Tensor) -> dict[Stage, nn.Module]:
        """Both networks, ready to be asked; one of them plays both parts if there is no other."""
        own = self.average.net if self.settings.weights == "average" else self.net
        built: dict[Stage, tuple[Blueprint, nn.Module]] = {self.stage: (self.plan, own)}
        if self.small is not None and self.stage == "large":
            built["small"] = self._second(Path(self.small))
        if not self._digests:
            self._digests = {stage: digest(net) for stage, (_, net) in built.items()}
            if len(built) == 1:
                log.info("One network alone draws the samples: the %s one.", self.stage)
        nets: dict[Stage, nn.Module] = {}
        for stage in ("large", "small"):
            plan, net = built.get(stage, built[self.stage])
            asked = condition if plan.asked else None
            nets[stage] = Denoiser(net.eval(), self.schedule, plan.predict, asked, self.sampling.guidance)
        return nets

    def _second(self, place: Path) -> tuple[Blueprint, UNet]:
        """The small network of another run, read once."""
        if self._other is None:
            path = stages.checkpoint_of(place)
            plan, weights = stages.load(path)
            self.plan.require_same(plan, str(path))
            if plan.stage != "small":
                raise UserError(
                    f"method.small={place} is a large network.", "Name a run with method.stage=small."
                )
            net = plan.build()
            net.load_state_dict(weights[self.settings.weights])
            self._other = plan, net.to(self.device).to(memory_format=torch.channels_last)
        return self._other

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the network is."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["fewspect"][stages.KEY] = self.plan.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network."""
        super().on_load_checkpoint(checkpoint)
        what = "The checkpoint"
        self.plan.require_same(stages.of_checkpoint(checkpoint, what), what, "stage", "predict")

    def load_foreign(self, path: Path) -> None:
        """Load a checkpoint of the original into both the network and its average.

        Raises:
            UserError: Names or shapes do not fit.
        """
        load_reference(path, self.net, "ema" if self.settings.weights == "average" else "model")
        self.average.net.load_state_dict(self.net.state_dict())
