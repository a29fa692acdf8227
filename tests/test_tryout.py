"""``mode=check`` passes one batch through every method, on data with defects and on good parts alone."""

import pytest
from test_conf import composed
from test_contract import CLASSES, root, tree  # noqa: F401 - fixtures

from fewspect.data.toy import layouts
from fewspect.engine import build, tryout

pytestmark = pytest.mark.slow

VARIANTS = {name: (name,) for name in CLASSES} | {"gccs_gan": ("gccs", "method.preset=paper")}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_batch_passes_through_every_method(name, tree, capsys):  # noqa: F811
    tryout.one_batch(tree(*VARIANTS[name]))
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("memory")
    generates = CLASSES[VARIANTS[name][0]].task == "generate"
    assert any(line.startswith("answer") for line in told) != generates


@pytest.mark.parametrize("name", ["subspace", "ssim_ae_lite"])
def test_good_parts_alone_are_enough(name, tmp_path, capsys):
    layouts.write(tmp_path, "flat", side=128, products=("wood",), defects=(), images=0, good=8)
    cfg = composed(
        f"method={name}", "data=folder", f"data.root={tmp_path}", "data.side=128", "data.batch_size=2"
    )
    tryout.one_batch(build.resolve(cfg))
    told = capsys.readouterr().out
    assert "memory" in told
    assert "answer" not in told
