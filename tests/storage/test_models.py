"""Saving and loading of models: recorded calls, errors, and checkpoints of gae 0.1.0."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from command import gae
from torch import Tensor, nn

from gae import Autoencoder, data, nets
from gae.autoencoder import load
from gae.inference import Adam, Amortized, Ascent, ClosedForm, Code, Detach, Inference, Zeros
from gae.likelihood import Gaussian, Likelihood, LinearMixture
from gae.objective import elbo
from gae.storage import checkpoint, models, recorded
from gae.storage.packing import dump, verified
from gae.storage.recipe import build, recipe_of
from gae.systems import NormalEncoder
from gae.systems import build as system
from gae.training import fit

OLD = Path(__file__).parent / "v0_1_0"
X = torch.linspace(-1, 1, 12).reshape(4, 3)


@pytest.fixture
def package() -> Iterator[ModuleType]:
    """A user-defined module with a decoder, an engine, and a count of calls."""
    module = ModuleType("my_package")
    exec(
        """
import torch
from torch import nn
from gae.inference import Code, Inference
from gae.storage import recorded

called = []

@recorded
def decoder(width=4):
    called.append(width)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))

def plain(width=4):
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))

class Twos(Inference):
    def __init__(self, value=2.0):
        super().__init__()
        self.value = value

    def infer(self, likelihood, x, k=None):
        return Code(torch.full((1, len(x), 2), self.value))
""",
        vars(module),
    )
    sys.modules["my_package"] = module
    yield module
    del sys.modules["my_package"]


def same(one: Autoencoder, other: Autoencoder, x: Tensor = X) -> bool:
    with torch.no_grad():
        torch.manual_seed(1)
        a = one.encode(x)
        torch.manual_seed(1)
        b = other.encode(x)
    return torch.equal(a.point, b.point) and torch.equal(a.log_joint, b.log_joint)


def by_parts() -> Autoencoder:
    decoder = Gaussian(nets.Rescaled(nets.mlp(2, [4], 3, activation=nn.Tanh), (3,)), 2, learn="scalar")
    return Autoencoder(decoder, Ascent(Zeros(), Adam(0.1), 5, adjoint=Detach()))


def test_parts_of_gae_are_built_again(tmp_path: Path) -> None:
    model = by_parts()
    assert same(load(model.save(tmp_path / "model")), model)


def test_a_part_exchanged_since_is_the_one_that_is_saved(tmp_path: Path) -> None:
    model = system("vae", (3,), latent=2, hidden=(4,))
    model.inference = Ascent(Zeros(), Adam(0.1), 3, adjoint=Detach())
    again = load(model.save(tmp_path / "model"))
    assert type(again.inference) is Ascent and same(again, model)


def test_a_setting_changed_since_is_not_lost_in_silence(tmp_path: Path) -> None:
    model = by_parts()
    model.inference.max_steps = 7
    with pytest.warns(UserWarning, match=r"model\.inference\.max_steps is 7, not the 5 built by the recorded call"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"cannot be built again: model\.inference\.max_steps.*build="):
        load(tmp_path / "model")

    def make() -> Autoencoder:
        made = by_parts()
        made.inference.max_steps = 7
        return made

    assert same(load(tmp_path / "model", build=make), model)


def test_a_shared_part_is_shared_again(tmp_path: Path) -> None:
    engine = Amortized(NormalEncoder(nets.mlp(3, [4], 4)))
    model = Autoencoder(Gaussian(nets.mlp(2, [4], 3), 2), Ascent(engine, Adam(0.1), 2, adjoint=Detach()))
    model.corruption = engine  # any second place
    assert len(recipe_of(model)["calls"]) == len({json.dumps(call) for call in recipe_of(model)["calls"]})
    again = load(model.save(tmp_path / "model"))
    assert again.corruption is again.inference.init


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_modes_and_frozen_parts_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = system("vae", (3,), latent=2, hidden=(4,)).to(dtype)
    model.likelihood.eval().requires_grad_(False)
    again = load(model.save(tmp_path / "model"))
    for (name, part), (_, other) in zip(model.named_modules(), again.named_modules(), strict=True):
        assert part.training == other.training, name
    for (name, value), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(value, other) and value.dtype == other.dtype == dtype, name
        assert value.requires_grad == other.requires_grad, name


def test_a_model_loaded_can_be_saved_again(tmp_path: Path) -> None:
    digits = data.load("digits")
    model = system("ppca", (1, 8, 8), latent=2)
    fit(model, digits, epochs=1, progress=False)
    first = load(model.save(tmp_path / "first"))
    second = load(first.save(tmp_path / "second"))
    assert first.preparation == second.preparation == digits.preparation
    assert torch.equal(second.log_evidence(digits.test).log_p, model.log_evidence(digits.test).log_p)


def test_what_is_not_ours_is_called_only_if_trusted(package: ModuleType, tmp_path: Path) -> None:
    model = Autoencoder(Gaussian(package.decoder(width=6), 2), package.Twos(3.0))
    model.save(tmp_path / "model")
    del package.called[:]
    references = ["my_package:decoder", "my_package:Twos"]
    for trusted, missing in (([], "decoder"), (references[:1], "Twos"), (references[1:], "decoder")):
        with pytest.raises(
            ValueError, match=rf"built by my_package:{missing}, .* pass trusted=\['my_package:{missing}'\]"
        ):
            load(tmp_path / "model", trusted=trusted)
        assert not package.called
    again = load(tmp_path / "model", trusted=references)
    assert package.called == [6] and same(again, model)
    del package.decoder
    with pytest.raises(ValueError, match=r"my_package:decoder, which cannot be imported"):
        load(tmp_path / "model", trusted=references)


def test_a_part_without_a_record_needs_a_builder(package: ModuleType, tmp_path: Path) -> None:
    model = Autoencoder(Gaussian(package.plain(), 2), Zeros())
    with pytest.warns(UserWarning, match=r"likelihood\.decoder is a Sequential without a recorded call; decorate"):
        model.save(tmp_path / "model")
    for kind in ("model", "run"):
        if kind == "run":
            fit(model, X, epochs=1, out=tmp_path / "run", progress=False)
        with pytest.raises(ValueError, match=r"cannot be built again: likelihood\.decoder is a Sequential"):
            load(tmp_path / kind)
        assert same(load(tmp_path / kind, build=lambda: Autoencoder(Gaussian(package.plain(), 2), Zeros())), model)
    with pytest.raises(ValueError, match=r"likelihood\.decoder\.0\.weight: \(4, 2\) .* \(9, 2\)"):
        load(tmp_path / "model", build=lambda: Autoencoder(Gaussian(package.plain(9), 2), Zeros()))


def test_a_local_class_cannot_be_recorded(tmp_path: Path) -> None:
    class Local(Inference):
        def infer(self, likelihood: Likelihood, x: Tensor, k: Tensor | None = None) -> Code:
            return Code(torch.zeros(1, len(x), 2))

    with pytest.warns(UserWarning, match=r"inference: .*Local cannot be imported from a module by its name"):
        Autoencoder(Gaussian(nets.mlp(2, [4], 3), 2), Local()).save(tmp_path / "model")


CALLS = {
    "another package": ("os:system", ["true"], r"os:system, which is not part of gae"),
    "a function of gae": ("gae.data.files:write_text", ["executed", ""], "not a part of a model"),
    "by way of gae": ("gae.storage.checkpoint:shutil.rmtree", ["."], "not a part of a model"),
    "what torch.nn imports": ("torch.nn.modules.module:torch.save", [[], "executed"], "not a part of a model"),
    "nothing": ("gae.nets:perceptron", [], "cannot be imported"),
    "no reference": ("gae", [], "cannot be imported|not a part of a model"),
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_no_call_but_those_of_parts(kind: str, wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference, args, said = CALLS[kind]
    entry: dict[str, Any] = {"function": reference, "args": args, "kwargs": {}}
    first = {"function": "gae.nets.networks:mlp", "args": [2, [], 3], "kwargs": {"activation": {"partial": entry}}}
    with pytest.raises(ValueError, match=said):
        build({"calls": [first, first] if wrapped else [entry]})
    assert not list(tmp_path.iterdir())


def test_existing_folders_are_left(tmp_path: Path) -> None:
    model = by_parts()
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")  # an empty one
    content = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(FileExistsError, match="model exists"):
        model.save(tmp_path / "model")
    assert content == {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Other values, with their checksum."""
    document = verified(json.loads((folder / checkpoint.STATE).read_text()))
    change(document)
    (folder / checkpoint.STATE).write_text(dump(document))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing file": (lambda path: (path / checkpoint.TENSORS).unlink(), "it has no tensors.safetensors"),
    "damaged file": (lambda path: (path / checkpoint.TENSORS).write_bytes(b"short"), "truncated or altered"),
    "newer": (lambda path: edit(path, lambda d: d.update(version=99)), "format version 99, .* Upgrade gae"),
    "missing value": (lambda path: edit(path, lambda d: d["state"]["module"].popitem()), "missing in .*model"),
    "extra value": (lambda path: edit(path, lambda d: d["state"]["module"].update(new=1)), "new: not in the model"),
    "no model": (lambda path: edit(path, lambda d: d.update(state={})), "was not written by `fit` or `save`"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_are_refused(kind: str, tmp_path: Path) -> None:
    folder = by_parts().save(tmp_path / "model")
    breaking, said = BROKEN[kind]
    breaking(folder)
    with pytest.raises(ValueError, match=said):
        load(folder)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_commands_take_what_save_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named system, a model of parts in double precision, and one fitted without a data set."""
    digits = data.load("digits")
    table, parts, bare = (system("vae", (1, 8, 8), latent=2, hidden=(4,)) for _ in range(3))
    fit(table, digits, epochs=1, progress=False)
    fit(parts.double(), digits.train[:50].double(), epochs=1, progress=False)
    parts.inference = Ascent(Zeros(), Adam(0.1), 2, adjoint=Detach())
    monkeypatch.chdir(tmp_path)
    for name, model in (("table", table), ("parts", parts), ("bare", bare)):
        model.save(Path(name))
        with (
            nullcontext()
            if name == "table"
            else pytest.warns(UserWarning, match="binarization of the model's data is unknown")
        ):
            gae("encode", name, "digits", "-o", "codes.npz")
            gae("explore", name, "digits", "-n", 5, "--size", 2)
            gae("gap", name, "digits", "-n", 2, "--samples", 400, "--draws", 4, "--steps", 9, "--out", f"{name}-gap")
        gae("sample", name, "-n", 2)
        x = digits.rows("all").x.to(next(model.parameters()).dtype)
        with np.load("codes.npz") as codes, torch.no_grad():
            assert np.array_equal(codes["z"], torch.cat([model.eval().encode(part).point for part in x.split(1000)]))


def test_encode_reads_a_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, list[Path]] = {"_read": [], "_digest": []}
    gae("fit", "pca", "digits", "--quiet", "--epochs", 1, "--out", tmp_path / "run")
    for name, calls in counts.items():
        real = getattr(checkpoint, name)
        monkeypatch.setattr(checkpoint, name, lambda path, real=real, calls=calls: calls.append(path) or real(path))
    gae("encode", tmp_path / "run", "digits", "-o", tmp_path / "codes.npz")
    assert [len(calls) for calls in counts.values()] == [1, 1]


@pytest.mark.parametrize("name", ["vae", "detached"])
def test_checkpoints_of_the_first_release_are_converted(name: str, tmp_path: Path) -> None:
    """Checkpoints written by ``gae fit`` and ``gae compare`` of gae 0.1.0, with the codes that it inferred."""
    wanted = json.loads((OLD / "codes.json").read_text())[name]
    x = torch.tensor(wanted["x"])
    model = load(OLD / name)
    with torch.no_grad():
        assert torch.allclose(model.encode(x).point, torch.tensor(wanted["point"]), atol=1e-5)
    assert model.preparation is not None and model.preparation.event_shape == (3,)
    assert same(load(model.save(tmp_path / "today")), model, x)


def test_a_run_of_the_first_release_without_a_system_needs_a_builder(tmp_path: Path) -> None:
    shutil.copytree(OLD / "vae", tmp_path / "run")
    (folder,) = (tmp_path / "run").iterdir()
    edit(folder, lambda document: document["state"].update(describe={"mine": 1}))
    with pytest.raises(ValueError, match=r"written by gae 0\.1\.0, which recorded only named systems.*build="):
        load(folder)
    again = load(folder, build=lambda: system("vae", (3,), latent=1, hidden=[2]))
    assert same(again, load(OLD / "vae"))


def test_objectives_and_options_are_kept(tmp_path: Path) -> None:
    model = system("vae", (3,), latent=2, hidden=(4,), beta=0.5)
    model.inference = Amortized(NormalEncoder(nets.mlp(3, [4], 4)), samples=3)
    again = load(model.save(tmp_path / "model"))
    assert again.objective.func is elbo and again.objective.keywords == {"beta": 0.5, "analytic": True}
    assert again.inference.samples == 3


def test_tensors_among_the_arguments_are_kept(tmp_path: Path) -> None:
    design = torch.randn(5, 2)
    model = system("linear-regression", (5,), design=design)
    again = load(model.save(tmp_path / "model"))
    assert same(again, model, torch.randn(2, 5))


def test_the_structure_is_no_part_of_what_a_model_is() -> None:
    assert "built_by" not in dict(by_parts().named_modules()) and models.structure(by_parts())["unrecorded"] is None
    assert recorded(nets.skip.__wrapped__).__name__ == "skip"
    assert LinearMixture(1, 2, (3,)).calls()[0].args == (1, 2, (3,)) and ClosedForm().calls()[0].args == ()


@pytest.mark.parametrize("name", ["pca", "gmm", "nmf", "vae", "iwae", "vq-vae", "laplace-gae"])
def test_a_pickled_model_is_the_model_and_can_be_saved(name: str, tmp_path: Path) -> None:
    """Between processes; files are written by ``save`` alone."""
    model = system(name, (3,), **({"components": 2} if name == "gmm" else {"latent": 2} if name in "pca nmf" else {}))
    again = pickle.loads(pickle.dumps(model))
    x = X.abs()
    assert same(again, model, x) and recipe_of(again) == recipe_of(model)
    assert same(load(again.save(tmp_path / "model")), model, x)
