"""The segmenters that train nothing: ridge and incontext on worlds where the right answer is known."""

import pytest
import torch
from torch import nn

from fewspect.backbones.base import Backbone, Features
from fewspect.errors import UserError
from fewspect.methods.incontext.method import InContext, shared
from fewspect.methods.ridge.method import Ridge
from fewspect.types import DataInfo, Support

SIDE, CELL = 32, 4
METHODS = [Ridge, InContext]


class Colours(Backbone):
    """Features of a cell: its mean colour and brightness."""

    def __init__(self):
        super().__init__("colours", 4, CELL, SIDE, [0], frozen=True)

    def encode(self, image):
        cells = nn.functional.avg_pool2d(image, CELL)
        cells = torch.cat([cells, cells.mean(1, keepdim=True) + 3], 1)
        grid = (cells.shape[-2], cells.shape[-1])
        return Features((cells.flatten(2).transpose(1, 2),), grid)


def scene(seed, top=8, left=8, size=8, colour=(1.0, 0.0, 0.0)):
    """A noisy grey part with a coloured defect: image (3, SIDE, SIDE) and mask."""
    draw = torch.Generator().manual_seed(seed)
    image = 0.5 + 0.03 * torch.randn(3, SIDE, SIDE, generator=draw)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[top : top + size, left : left + size] = 1
    image[:, mask == 1] = torch.tensor(colour)[:, None]
    return image, mask


def support(*scenes, count=None):
    images, masks = zip(*scenes, strict=True)
    return Support(
        image=torch.stack(images),
        mask=torch.stack(masks),
        label=torch.ones(len(scenes), dtype=torch.int64),
        count=torch.ones(len(scenes)) if count is None else torch.tensor(count),
        classes=("red",),
    )


@pytest.mark.parametrize("kind", METHODS)
def test_the_defect_is_found_where_it_is_and_nothing_else(kind):
    method = kind(Colours())
    state = method.adapt(support(scene(0)))
    image, mask = scene(1, top=20, left=4)
    other, _ = scene(2, top=4, left=20, colour=(0.0, 1.0, 0.0))
    prob = method.predict(torch.stack([image, other]), state).prob
    assert prob.shape == (2, SIDE, SIDE)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[22:26, 6:10] = True  # away from the border, where bilinear maps mix
    assert (prob[0][inside] > 0.5).all()
    assert (prob[0][torch.nn.functional.max_pool2d(mask[None].float(), 9, 1, 4)[0] == 0] < 0.5).all()
    if kind is InContext:
        assert prob[1].max() < prob[0][inside].min()


@pytest.mark.parametrize("kind", METHODS)
def test_a_view_that_counts_twice_is_two_views(kind):
    method = kind(Colours())
    image = scene(5, top=3)[0][None]
    twice = method.adapt(support(scene(0), scene(1), count=[2.0, 1.0]))
    each = method.adapt(support(scene(0), scene(0), scene(1)))
    a, b = (method.predict(image, state).prob for state in (twice, each))
    assert torch.equal(a > 0.5, b > 0.5)
    if kind is InContext:  # a ridge holds out a view with all its copies: it may choose another penalty
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", METHODS)
def test_supports_without_a_defect_are_refused(kind):
    method = kind(Colours())
    good = support(scene(0, size=0))
    with pytest.raises(UserError, match=r"these supports show none"):
        method.adapt(good)
    with pytest.raises(UserError, match=r"these supports show none"):
        method.setup_data(DataInfo(classes=("red",), tasks=frozenset({"segment"}), detect=True))


def test_a_defect_smaller_than_a_cell_is_learned():
    method = Ridge(Colours())
    state = method.adapt(support(scene(0, top=9, left=9, size=2), scene(3, top=17, left=21, size=2)))
    image, _ = scene(1, top=21, left=13, size=2)
    top, left = divmod(int(method.predict(image[None], state).prob.argmax()), SIDE)
    assert abs(top - 21.5) <= CELL
    assert abs(left - 13.5) <= CELL


def test_good_supports_say_what_is_no_defect():
    """A green mark on good parts keeps a faintly green patch from being taken for the (yellow) defect."""
    method = InContext(Colours())
    defect, good = scene(0, colour=(1.0, 1.0, 0.0)), scene(1, colour=(0.2, 1.0, 0.0))
    good = (good[0], torch.zeros_like(good[1]))
    query = scene(2, top=20, colour=(0.3, 1.0, 0.0))[0][None]
    alone = method.predict(query, method.adapt(support(defect))).prob
    both = method.predict(query, method.adapt(support(defect, good))).prob
    assert alone.max() > 0.5 > both.max()


def test_groups_share_their_mean():
    tokens = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]]), dim=-1)
    values = torch.tensor([1.0, 3.0, -1.0, -2.0])
    assert torch.allclose(shared(values, tokens, 0.1), torch.tensor([2.0, 2.0, -1.5, -1.5]))
    assert torch.allclose(shared(values, tokens, 2.0), values.mean().expand(4))
