"""Wishes of mode=generate: files by turn, regions that are drawn, what does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewspect.engine.build import Generate
from fewspect.engine.wishes import GROWN, Wishes, drawer
from fewspect.errors import UserError
from fewspect.methods.generator import Generator, Wish
from fewspect.types import DataInfo, Episode

SIDE = 32


class Echo(Generator):
    """Returns what it was asked for."""

    fit_kind = "none"

    def __init__(self):
        super().__init__()
        self.setup_data(DataInfo(("hole", "scratch"), ("a", "b"), side=SIDE, protocol="labelled"))

    @property
    def classes(self):
        return self.info.classes

    def generate(self, numbers):
        return [("free", n) for n in numbers]

    def control(self, numbers, wishes):
        return list(zip(numbers, wishes, strict=True))


def asked(training=(), **options):
    given = {name: getattr(Generate(), name) for name in Generate.__dataclass_fields__}
    return drawer(Echo(), given | {k: str(v) if k in FILES else v for k, v in options.items()}, training, 0)


FILES = ("mask", "normal", "region")


@pytest.fixture
def place(tmp_path):
    r = np.random.default_rng(0)
    for name in ("goods", "masks"):
        (tmp_path / name).mkdir()
    for k in range(2):
        good = r.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(good).save(tmp_path / "goods" / f"{k}.png")
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10:14, 6 + 8 * k : 12 + 8 * k] = k + 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "empty.png")
    return tmp_path


def test_without_wishes_it_draws_freely():
    assert asked()([3, 4]) == [("free", 3), ("free", 4)]


def test_files_are_taken_in_turn_whatever_the_batch(place):
    draw = asked(mask=place / "masks", normal=place / "goods", classes="hole", product="b", start=0.7)
    one, two = draw([0, 1, 2, 3]), [draw([k])[0] for k in range(4)]
    for (n, wish), (_, alone) in zip(one, two, strict=True):
        assert torch.equal(wish.region, alone.region)
        assert wish.mask.unique().tolist() == [0, n % 2 + 1]
        assert wish.image.shape == (3, SIDE, SIDE)
        assert wish.source == f"{n % 2}.png {n % 2}.png"
        assert (wish.group, wish.product, wish.classes) == (f"{n % 2}.png", "b", ("hole",))
        assert wish.start == 0.7
        assert bool(wish.region[wish.mask > 0].all())
        assert int(wish.region.sum()) == (4 + 2 * GROWN) * (6 + 2 * GROWN)


def test_drawn_regions_are_functions_of_the_number(place):
    draw = asked(normal=place / "goods")
    regions = [wish.region for _, wish in draw(range(20))]
    assert all(0.05 <= float(r.float().mean()) <= 0.26 for r in regions)
    assert len({tuple(r.flatten().tolist()) for r in regions}) > 15
    assert torch.equal(draw([7])[0][1].region, regions[7])
    assert not torch.equal(Wishes(Wish(), side=SIDE, seed=1)._region(7, None), regions[7])


def test_variations_take_the_training_pictures_that_show_a_defect():
    empty = torch.zeros(0, 3, SIDE, SIDE), torch.zeros(0, SIDE, SIDE), torch.zeros(0), torch.zeros(0)
    episodes = []
    for k in range(3):
        mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        mask[0, :4, :4] = k
        image = torch.full((1, 3, SIDE, SIDE), k / 4)
        episodes.append(Episode(*empty, image, mask, torch.ones(1), ("x",), paths=(f"/m/d/{k}.png",)))
    found = [wish for _, wish in asked(episodes, start=0.4)(range(3))]
    assert [w.group for w in found] == ["d/1.png", "d/2.png", "d/1.png"]
    assert [int(w.labels.max()) for w in found] == [1, 2, 1]
    assert all(w.mask is w.region is None and w.start == 0.4 for w in found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"product": "c"}, "product=c is no product"),
        ({"classes": ["hole", "rust"]}, "classes: rust is no class"),
        ({"region": "holes"}, "there is none"),
        ({"normal": "nothing"}, "nothing: no image there"),
        ({"normal": "goods", "region": "empty.png"}, "empty.png: the region is empty"),
    ],
)
def test_what_does_not_fit_is_named(place, options, says):
    paths = {k: place / v if k in FILES else v for k, v in options.items()}
    with pytest.raises(UserError, match=says):
        asked(**paths)
