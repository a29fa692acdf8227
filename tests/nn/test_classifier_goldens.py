"""Parity of the classification heads, file by file of a golden folder (``--goldens=DIR``)."""

import numpy as np
import pytest
import torch

from fewspect.nn.adapter import Zip
from fewspect.nn.fine_tune import Recipe, TipF, ZipF, hardest_triplets, train
from fewspect.nn.heads import Neighbours, Prototypes
from fewspect.nn.merging import merge
from fewspect.nn.shots import Shots


def recipe(golden):
    spec = golden["fine_tune"]
    assert (spec["optimizer"], spec["betas"]) == ("AdamW", [0.9, 0.999])
    return Recipe(
        steps=golden["steps"],
        lr=spec["lr"],
        lr_min=spec["lr_min"],
        eps=spec["eps"],
        weight_decay=spec["weight_decay"],
    )


def fitted(row, golden, shots):
    """The fitted head, and the cross-entropy of every step where it is trained and stored."""
    kind = row["classifier"]
    if kind == "zip_f":
        head = ZipF(config=row["config_index"], beta=row["beta"], tau=golden["tau"], recipe=recipe(golden))
        return train(head, shots)
    if kind == "tip_f":
        return train(TipF(row["beta"], golden["tau"], recipe(golden)), shots)
    simple = {
        "zip": lambda: Zip(row["beta"], golden["tau"]),
        "tip": lambda: Zip(row["beta"], golden["tau"]),
        "cosine": lambda: Prototypes("cosine"),
        "euclidean": lambda: Prototypes("euclidean"),
        "knn": lambda: Neighbours(row["neighbours"], golden["knn_scale"]),
    }
    return simple[kind]().fit(shots), None


@pytest.mark.goldens("mvrec", "classifiers")
def test_classifiers(golden):
    support, query = (torch.from_numpy(golden.stored(k))[None] for k in ("support", "query"))
    label = torch.from_numpy(golden.stored("support_labels")).long()[None]
    shots = Shots(support, label, torch.ones(label.shape), golden["classes"])
    outputs = {}
    for row in golden["heads"]:
        key = row["key"]
        head, entropy = fitted(row, golden, shots)
        logits = head(query)
        named = {"logits": logits, "probs": logits.softmax(-1), "combined": merge(logits, "entropy")}
        outputs |= {f"{key}_{k}": v[0] for k, v in named.items()}
        if row["trained"]:
            outputs[f"{key}_keys"] = head.keys[0]
            outputs[f"{key}_ce"] = entropy[:, 0]
        if row["classifier"] == "zip_f":
            outputs |= {f"{key}_weight": head.weight[0], f"{key}_bias": head.bias[0]}
    flat = support[0].flatten(0, 1)
    labels = label[0].repeat_interleave(golden["views"])
    outputs["triplet_support_views"] = hardest_triplets(flat, labels, golden["triplet_margin"])
    found = golden.compare(outputs)
    assert max(found.values()) < 1e-3
    print({k: v for k, v in found.items() if v > 1e-6})


@pytest.fixture
def bottle(golden):
    """Pool and queries of the reference split; skips where the features are not at hand."""
    from fewspect.data import features

    spec = golden["pool"]
    path = golden.folder / spec["file"]
    if not path.is_file():
        pytest.skip(f"{spec['file']} is not in {golden.folder}; run with --goldens=<folder that has it>")
    store = features.read(path)
    places = [np.flatnonzero(store.label.numpy() == k) for k in range(golden["classes"])]
    pool, asked = ([i for p in places for i in p[start::2]] for start in (0, 1))
    assert len(pool) == spec["samples"]
    assert len(asked) == golden["queries"]
    return store.take(pool), store.take(asked)


def supports(pool, shot, seeds, token):
    """Shots of all seeds at once."""
    from fewspect.data import sampling

    chosen = torch.tensor([sampling.published(pool.label.tolist(), shot, s) for s in seeds])  # (E, S)
    label = pool.label[chosen]
    feature = pool.feature[:, :, token].float()[chosen]
    return Shots(feature, label, torch.ones(label.shape), len(pool.classes))


def accuracies(head, asked, token, views, digits):
    logits = head(asked.feature[:, views, token].float()[None], views)
    right = (merge(logits, "entropy").argmax(-1) == asked.label).float().mean(1)
    return [round(float(a), digits) for a in right]


def heads(golden, block):
    half = block == "half"
    spec = golden["methods"]
    trained = Recipe(**{k: spec["zip_f"][k] for k in ("steps", "lr", "lr_min", "eps", "weight_decay")})
    return {
        "zip": Zip(spec["zip"]["beta"], golden["tau"], half),
        "zip_f": ZipF(beta=spec["zip_f"]["beta"], tau=golden["tau"], half=half, recipe=trained),
    }


@pytest.mark.slow
@pytest.mark.goldens("mvrec", "few_shot_reference")
@pytest.mark.parametrize("block", ["float32", "half"])
@pytest.mark.parametrize("method", ["zip", "zip_f"])
def test_reference_accuracies(golden, bottle, block, method):
    pool, asked = bottle
    views = {"mv": list(range(golden["support_views"])), "sv": [0]}
    reference, wrong = golden.stored(golden["blocks"][block]), {}
    limit = golden["tolerance"][f"{block}/{method}"]["atol"]
    for shot in golden["shots"]:
        head = heads(golden, block)[method].fit(supports(pool, shot, golden["seeds"], golden["token"]))
        for name, chosen in views.items():
            found = accuracies(head, asked, golden["token"], chosen, golden["digits"])
            stored = reference[f"{method}/{shot}-shot/{name}"]
            if found != stored:
                wrong[shot, name] = found, stored
            assert np.abs(np.subtract(found, stored)).max() <= limit, (found, stored)
    print(block, method, "deviating settings:", wrong)


@pytest.mark.slow
@pytest.mark.goldens("mvrec", "few_shot_reference")
def test_other_reference_accuracies(golden, bottle):
    pool, asked = bottle
    beta = golden["methods"]["zip"]["beta"]
    kinds = {
        "cosine prototype": Prototypes("cosine"),
        "euclidean prototype": Prototypes("euclidean"),
        "kNN (k = shots)": Neighbours(),
        "Tip-Adapter b32": Zip(beta),
        "Tip-Adapter-F b1": TipF(),
    }
    reference = golden.stored(golden["blocks"]["other"])
    limit = golden["tolerance"]["other"]["atol"]
    assert reference.keys() == kinds.keys()
    for name, kind in kinds.items():
        for shot in golden["shots"]:
            head = kind.fit(supports(pool, shot, golden["seeds"], golden["token"]))
            for way, views in (("mv", list(range(27))), ("sv", [0])):
                mean = np.mean(accuracies(head, asked, golden["token"], views, golden["digits"]))
                assert abs(mean - reference[name][way][f"{shot}-shot"]) <= limit
                print(name, shot, way, round(float(mean), 4), reference[name][way][f"{shot}-shot"])
