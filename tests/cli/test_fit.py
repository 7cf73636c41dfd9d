"""``gae fit``: the options of training, and the logs of TensorBoard."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command import gae as command

import gae
from gae.data import Dataset
from gae.training import Anneal, cosine

SMALL = ("--option", "latent=2", "--option", "hidden=8", "--quiet", "--json")


def test_options_of_training_are_those_of_python(digits: Dataset, tmp_path: Path) -> None:
    chosen = ["--steps", 8, "--batch-size", 200, "--accumulate", 2, "--lr", 0.01, "--schedule", "cosine", "--seed", 2]
    chosen += ["--beta-warm-up", 5, "--clip", 1.0, "--validation", 0.2, "--keep", "best"]
    results = json.loads(command("fit", "vae", "digits", *SMALL, *chosen, "--out", tmp_path / "run"))
    torch.manual_seed(2)
    model = gae.vae(digits, latent=2, hidden=[8])
    options: dict[str, Any] = {"steps": 8, "batch_size": 200, "accumulate": 2, "clip": 1.0, "validation": 0.2}
    options |= {"optimizer": partial(torch.optim.Adam, lr=0.01), "scheduler": cosine, "keep": "best", "seed": 2}
    history = gae.fit(model, digits, callbacks=[Anneal("objective.beta", steps=5)], progress=False, **options)
    last = history.rows[-1]
    assert results["training loss (nats)"] == last.train_loss
    assert results["validation loss (nats)"] == last.validation_loss
    for name, value in gae.load(tmp_path / "run").state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accumulate", 2], "accumulate is for an optimizer, and this model learns in closed form"),
        (["--schedule", "cosine"], "scheduler is for an optimizer"),
        (["--beta-warm-up", 9], "counts steps of an optimizer, and this model learns in closed form"),
        (["--schedule", "stairs"], "Unknown schedule 'stairs'. Valid schedules: cosine, linear"),
        (["--keep", "newest"], "keep must be best or last, got 'newest'"),
        (["--epochs", 2, "--steps", 3], "Give epochs or steps, not both"),
    ],
)
def test_options_that_are_refused(options: list[Any], message: str, tmp_path: Path) -> None:
    assert message in command("fit", "pca", "digits", "--quiet", *options, "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    options = ("fit", "ae", "digits", *SMALL, "--epochs", 1, "--batch-size", 500, "--tensorboard", "--out")
    command(*options, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'gae[tensorboard]'" in command(*options, tmp_path / "other", code=2)
    assert not (tmp_path / "other").exists()
