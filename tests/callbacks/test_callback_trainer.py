"""The callbacks inside a real Trainer with a module that answers at random."""

import csv
import json

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from metric_cases import cases, episode
from PIL import Image

from fewspect.callbacks.files import write_atomic
from fewspect.callbacks.nan_guard import NanGuard
from fewspect.callbacks.panels import Panels
from fewspect.callbacks.predictions import COLUMNS, Predictions, Table, failed_row, regions, write_prediction
from fewspect.callbacks.record import Record, git_state, peak_memory, plain, read_record, relative
from fewspect.errors import UserError
from fewspect.types import Prediction


class Module(lightning.LightningModule):
    def __init__(self, fail_at=-1, error=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fail_at, self.error = fail_at, error

    def training_step(self, batch, index):
        if index == self.fail_at and self.error is not None:
            raise self.error
        part = self.weight.sum() * (float("nan") if index == self.fail_at else 1.0)
        self.log("train/dice", part)
        self.log("train/ce", self.weight.sum())
        return part + self.weight.sum()

    def answer(self, batch):
        return {"episodes": [e for _, e in batch], "predictions": [p for p, _ in batch]}

    def validation_step(self, batch, index):
        self.log("val/miou", 0.5 + 0.1 * (self.current_epoch == 0), batch_size=1)
        return self.answer(batch)

    def test_step(self, batch, index):
        self.log("test/miou", torch.tensor(float("nan")), batch_size=1)
        return self.answer(batch)

    def predict_step(self, batch, index):
        return self.answer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Pictures(Logger):
    def __init__(self):
        super().__init__()
        self.keys = []

    name = version = "pictures"
    experiment = None

    def log_metrics(self, *args, **kwargs):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_image(self, key, images, caption):
        assert len(images) == len(caption) == 1
        self.keys.append(key)


def loader(pairs):
    return torch.utils.data.DataLoader([pairs[i : i + 2] for i in range(0, len(pairs), 2)], batch_size=None)


def training(number=6):
    return loader([e for _, e in cases(number)])


def trainer(folder, *callbacks, **options):
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "max_epochs": 2, "enable_checkpointing": False, **options},
    )


def test_panels_are_written_worst_first(tmp_path):
    logger = Pictures()
    run = trainer(tmp_path, Panels(every_n_epochs=2, count=3), logger=logger)
    run.fit(Module(), training(), loader(cases(5)))
    run.test(Module(), loader(cases(9)), verbose=False)
    files = sorted(p.name for p in (tmp_path / "panels").iterdir())
    assert [f for f in files if f.startswith("val")] == ["val_epoch_0000.png"]
    worst = [f for f in files if f.startswith("test_iou")]
    assert len(worst) == 3 and all(f.startswith("test_iou_0.") for f in worst)
    assert "test_failures.png" in files
    assert logger.keys == ["panels/val", "panels/test"]


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_round_trip(tmp_path):
    pairs = cases(8, products=("a",))
    run = trainer(tmp_path, Predictions())
    run.predict(Module(), loader(pairs), return_predictions=False)
    rows = rows_of(tmp_path / "predictions" / "predictions.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [r["status"] for r in rows] == ["ok"] * 8
    assert len({r["name"] for r in rows}) == 8 and rows[0]["name"] == "000"
    for row, (prediction, truth) in zip(rows, pairs, strict=True):
        folder = tmp_path / "predictions"
        prob = np.asarray(Image.open(folder / "prob" / f"{row['name']}.png"))
        assert prob.dtype == np.uint16
        assert np.abs(prob / 65535 - prediction.prob[0].numpy()).max() <= 0.5 / 65535 + 1e-7
        mask = np.asarray(Image.open(folder / "mask" / f"{row['name']}.png"))
        assert (mask == prediction.mask[0].numpy() * 255).all()
        assert Image.open(folder / "overlay" / f"{row['name']}.png").size == mask.shape[::-1]
        assert int(row["area_pixels"]) == prediction.mask.sum()
        assert int(row["components"]) == len(json.loads(row["boxes"]))
        assert float(row["score"]) == float(prediction.score)
        assert row["file"] == truth.paths[0]


def test_predictions_refuse_the_folder_of_the_inputs(tmp_path):
    inputs = tmp_path / "images"
    inputs.mkdir()
    pair = cases(1)[0][0], episode(torch.zeros(12, 70), paths=(str(inputs / "a.png"),))
    with pytest.raises(UserError, match="beside"):
        trainer(tmp_path, Predictions(str(inputs))).predict(Module(), loader([pair]))
    assert list(inputs.iterdir()) == []


def test_rows_survive_without_closing(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.add([failed_row("ä\udcff.png", "why\n not")])
    assert rows_of(tmp_path / "t.csv")[0]["reason"] == "why not"


def test_broken_maps_and_missing_parts(tmp_path):
    image = torch.zeros(3, 4, 5)
    row = write_prediction(tmp_path, "a", image, Prediction(prob=torch.full((1, 4, 5), float("nan"))))
    assert row["status"] == "failed" and not list(tmp_path.rglob("*.png"))
    row = write_prediction(tmp_path, "b", image, Prediction(score=torch.tensor([2.0])))
    assert (row["decision"], row["area_pixels"], row["boxes"]) == ("good", 0, "[]")
    decided = Prediction(score=torch.tensor([2.0]), decision=torch.tensor([1]))
    assert write_prediction(tmp_path, "c", image, decided)["decision"] == "defect"


def test_boxes_join_diagonal_neighbours():
    mask = np.zeros((5, 6), bool)
    mask[0, 0] = mask[1, 1] = mask[4, 3:6] = True
    assert regions(mask) == [[0, 0, 2, 2], [3, 4, 3, 1]]


def test_record_follows_a_run(tmp_path):
    record = Record(facts={"seed": 3, "config_digest": "abc"})
    checkpoint = lightning.callbacks.ModelCheckpoint(
        tmp_path / "checkpoints", "best", monitor="val/miou", mode="max"
    )
    run = trainer(tmp_path, record, checkpoint, enable_checkpointing=True)
    run.fit(Module(), training(), loader(cases(2)))
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["status"] == "running"
    objective = content["objective"]
    assert (objective["name"], objective["direction"], objective["epoch"]) == ("val/miou", "max", 0)
    assert (objective["value"], objective["last"]) == (pytest.approx(0.6), pytest.approx(0.5))
    assert content["best_checkpoint"] == "checkpoints/best.ckpt"
    assert content["samples_per_second"] > 0 and content["peak_memory_mib"]["rss"] > 50
    run.test(Module(), loader(cases(2)), verbose=False)
    content = read_record(tmp_path / "run.json")
    assert (content["status"], content["seed"], content["starts"], content["error"]) == ("done", 3, 1, None)
    assert content["metrics"]["test/miou"] is None and content["metrics"]["val/miou"] == pytest.approx(0.5)
    trainer(tmp_path, Record()).test(Module(), loader(cases(2)), verbose=False)
    again = read_record(tmp_path / "run.json")
    assert again["starts"] == 2 and again["objective"]["value"] == pytest.approx(0.6)
    assert again["wall_seconds"] >= content["wall_seconds"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("näh"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_record_of_an_error(tmp_path, error, status):
    with pytest.raises((ValueError, SystemExit)):
        trainer(tmp_path, Record()).fit(Module(fail_at=1, error=error), training())
    content = read_record(tmp_path / "run.json")
    assert content["status"] == status
    assert type(error).__name__ in content["error"]


def test_record_helpers(tmp_path):
    assert read_record(tmp_path / "none.json") == {}
    write_atomic(tmp_path / "bad.json", lambda file: file.write(b"{"))
    assert read_record(tmp_path / "bad.json") == {}
    assert plain({"a": torch.tensor(1.5), "b": float("inf")}) == {"a": 1.5, "b": None}
    assert git_state(tmp_path) is None
    assert peak_memory()
    assert relative(tmp_path / "c" / "x.ckpt", tmp_path) == "c/x.ckpt"
    assert relative(tmp_path.parent / "x.ckpt", tmp_path) == "x.ckpt"


def test_nan_guard_names_step_part_and_files(tmp_path):
    module = Module(fail_at=2)
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, NanGuard()).fit(module, training())
    text = str(caught.value)
    assert "step 2" in text and "train/dice" in text and "train/ce" not in text
    assert cases(6)[4][1].paths[0] in text
    assert torch.isfinite(module.weight).all()
