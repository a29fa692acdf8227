"""Parity of memory banks with independent numbers, file by file of a golden folder (``--goldens=DIR``)."""

import pytest
import torch
import torch.nn.functional as F
from position_gaussians import PositionGaussians

from fewspect.nn import neighbours
from fewspect.nn.maps import image_score, smooth
from fewspect.nn.prototype import unit


def cosine(golden, query, bank, half):
    """Distances (images, patches) to the nearest and mean over the k nearest."""
    k = golden["cosine_k"]
    distance, _ = neighbours.nearest(unit(query), unit(bank), k, half=half, chunk_mb=0.01)
    low, high = golden["cosine_clip"]
    assert low <= distance.min() <= distance.max() <= high
    images = golden["grid"][0]
    return distance[:, 0].view(images, -1), distance.mean(1).view(images, -1)


def maps(golden, distance):
    """Smoothed maps at the size of the image, up-sampled in both ways."""
    cells = distance.unflatten(1, golden["grid"][1:])[:, None]
    ways = {"nearest": {}, "bilinear": {"align_corners": False}}
    return {
        mode: smooth(F.interpolate(cells, golden["map_hw"], mode=mode, **more)[:, 0], golden["map_sigma"])
        for mode, more in ways.items()
    }


def keys(golden, start):
    """Names of outputs; they carry settings, which are taken from the manifest, in its order."""
    return [key for key in golden["tolerance"] if key.startswith(start)]


def patchcore(query, bank, distance, index, number):
    """PatchCore's image scores of queries (images, patches, width)."""
    far = distance.argmax(1)
    rows = torch.arange(len(query))
    weight = neighbours.weight(query[rows, far], index[rows, far], bank, number)
    return distance[rows, far] * weight


@pytest.mark.goldens("reconstruction_ae", "memory_bank")
@pytest.mark.parametrize("half", [False, True])
def test_memory_bank(golden, half):
    stored = {k: torch.from_numpy(golden.stored(k)) for k in golden["stored_inputs"]}
    query, bank = stored["query"], stored["bank"]
    images, share = golden["grid"][0], f"top{100 * golden['top_fraction']:g}pct"
    assert bank.shape == (golden["bank_size"], golden["width"])
    nn1, mean = cosine(golden, query, bank, half)
    distance, index = neighbours.nearest(query, bank, metric="euclidean", chunk_mb=0.01)
    distance, index = distance.view(images, -1), index.view(images, -1)
    train = stored["padim_train"].flatten(2).transpose(1, 2)  # (n, P, D)
    test = stored["padim_test"].flatten(2).transpose(1, 2)
    assert golden["padim_ddof"] == 1
    gaussians = PositionGaussians.of(train, sum(golden["padim_regularisation"]))
    outputs = {
        "cosine_nn1": nn1,
        **{key: mean for key in keys(golden, "cosine_nn") if key.endswith("mean")},
        "top1pct_mean": image_score(stored["top1pct_input"], share)[:, None],
        "cosine_image_score_top1pct": image_score(nn1, share)[:, None],
        "euclid_nn1": distance,
        "euclid_nn_index": index,
        "kcenter_indices": neighbours.k_centre(bank, golden["kcenter_n"], start=golden["kcenter_start"]),
        "padim_distance": gaussians.distance(test).unflatten(1, stored["padim_test"].shape[2:]),
    }
    views = query.view(images, -1, query.shape[1])
    for key, number in zip(keys(golden, "patchcore_score"), golden["patchcore_neighbours"], strict=True):
        outputs[key] = patchcore(views, bank, distance, index, number)
    found = maps(golden, nn1)
    outputs |= {key: found[key.split("_")[1]] for key in keys(golden, "map_")}
    golden.compare(outputs)
