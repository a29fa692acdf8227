"""What is said of a generated set when it is written."""

import json

import torch

from fewspect.callbacks.samples import write_set
from fewspect.types import Generated


def test_defects_that_were_asked_for_and_are_not_there_are_told(tmp_path, caplog):
    empty, marked = torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    marked[2:4, 2:4] = 2
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    asked = [({"asked": "hole+deep dent"}, marked), ({"asked": "deep dent"}, empty), ({}, empty)]
    samples = [Generated(image, mask, origin=origin) for origin, mask in asked]
    write_set(tmp_path / "set", samples, ("dent", "deep dent"), {})
    assert [r.getMessage() for r in caplog.records] == [
        "deep dent: asked for in 2 samples, not there in 1 of them."
    ]
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["samples"][0]["areas"] == {"deep dent": 4}
