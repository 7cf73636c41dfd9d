"""Free codes: found by content, learned with the decoder, kept in checkpoints; new data by an ascent."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gae import Autoencoder, systems
from gae.data import Dataset, load
from gae.inference import Ascent, AutoDecoder, Detach, GradientAscent, Zeros
from gae.inference.auto_decoder import row_keys
from gae.likelihood import Flat, Gaussian
from gae.storage import checkpoint
from gae.training import fit, restore

train = partial(fit, progress=False)


def model(prior: nn.Module | None = None) -> Autoencoder:
    likelihood = Gaussian(nn.Linear(2, 3), 2, 0.5, prior=prior)
    inner = Ascent(Zeros(), GradientAscent(0.05), 5, adjoint=Detach())
    return Autoencoder(likelihood, AutoDecoder(2, inner))


def free(autoencoder: Autoencoder) -> AutoDecoder:
    assert isinstance(autoencoder.inference, AutoDecoder)
    return autoencoder.inference


def known(x: Tensor) -> Autoencoder:
    autoencoder = model()
    free(autoencoder).initialize(autoencoder.likelihood, x, 0)
    return autoencoder


# How rows are found.


def test_keys_tell_rows_apart() -> None:
    """Every row of eight bits, and all neighbours of one row of floats, have keys of their own."""
    rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 12)
    assert len(row_keys(rows).unique()) == len(rows)
    start = torch.rand(1, 200).expand(400, 200).clone()
    start[range(200), range(200)] = torch.nextafter(start[0], torch.tensor(2.0))
    start[range(200, 400), range(200)] += 0.25
    assert len(row_keys(start).unique()) == 400


def test_keys_look_random() -> None:
    """Each of the 64 bits is set in half of the keys, and a change of one value flips half of them."""
    rows = torch.arange(4096.0).unsqueeze(1) * torch.tensor([[1.0, 0.0, 0.5]])
    bits = (row_keys(rows).unsqueeze(1) >> torch.arange(64)) & 1
    assert ((bits.double().mean(0) - 0.5).abs() < 4 * 0.5 / 64).all()
    flipped = (bits[1:] ^ bits[:-1]).double().mean(0)
    assert ((flipped - 0.5).abs() < 4 * 0.5 / 64).all()


def test_keys_depend_on_values_alone() -> None:
    x = torch.randn(7, 2, 3)
    x[0] = 0
    assert torch.equal(row_keys(x), row_keys(x.double()))
    assert torch.equal(row_keys(x)[2:5], row_keys(x[2:5]))
    assert torch.equal(row_keys(-x[:1]), row_keys(x[:1]))
    assert row_keys(x[1:2]) != row_keys(x[1:2].flip(1))


def test_no_two_digits_share_a_key(digits: Dataset) -> None:
    x = torch.cat([digits.train, digits.test])
    assert len(row_keys(x).unique()) == len(x.flatten(1).unique(dim=0))


# Codes in training.


def test_equal_rows_share_a_code() -> None:
    x = torch.randn(6, 3)
    x[4] = x[1]
    autoencoder = known(x)
    assert free(autoencoder).codes.shape == (5, 2)
    z = autoencoder.encode(x).z[0]
    assert torch.equal(z[4], z[1]) and len(z.detach().unique(dim=0)) == 5
    order = torch.tensor([3, 1, 0])
    assert torch.equal(autoencoder.encode(x[order]).z[0], z[order])


def test_gradients_reach_only_the_codes_that_were_looked_up() -> None:
    x = torch.randn(6, 3)
    autoencoder = known(x)
    autoencoder(x[[1, 4]]).backward()
    codes, used = free(autoencoder).codes, free(autoencoder).find(x[[1, 4]])
    assert codes.grad is not None
    touched = codes.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == sorted(used.tolist())
    z = codes.detach()[used].requires_grad_()
    loss = -autoencoder.likelihood.log_joint(x[[1, 4]], z.unsqueeze(0)).mean()
    assert torch.allclose(codes.grad[used], torch.autograd.grad(loss, z)[0])


def test_unknown_rows_are_refused_in_training_and_encoded_in_evaluation() -> None:
    x = torch.randn(6, 3)
    for autoencoder in (known(x), model()):
        y = torch.cat([x[:2], x[:3] + 1])
        with pytest.raises(ValueError, match=r"no code for [35] of 5 rows, the first at index [20]\. .*`\.eval\(\)`"):
            autoencoder.encode(y)
        inner = free(autoencoder).inner
        assert torch.equal(autoencoder.eval().encode(y).z, inner(autoencoder.likelihood, y).z)


def test_codes_start_from_the_prior_and_are_kept() -> None:
    x = torch.randn(4000, 3)
    autoencoder, other = known(x), known(x)
    codes = free(autoencoder).codes
    assert torch.equal(codes, free(other).codes)
    assert codes.std().item() == pytest.approx(1, abs=0.05)
    before, parameter = autoencoder.encode(x[:10]).z.detach().clone(), codes
    free(autoencoder).initialize(autoencoder.likelihood, torch.cat([x[:5], x[:7] + 1]), 1)
    assert free(autoencoder).codes is parameter and len(parameter) == 4007
    assert torch.equal(autoencoder.encode(x[:10]).z, before)
    assert (free(autoencoder).keys.diff() > 0).all()


def test_what_cannot_be_initialised() -> None:
    autoencoder, x = model(Flat(2)), torch.randn(6, 3)
    with pytest.raises(NotImplementedError, match="flat prior is improper"):
        free(autoencoder).initialize(autoencoder.likelihood, x, 0)
    with pytest.raises(ValueError, match=r"built for codes of shape \(2,\), but those of Gaussian have \(4,\)"):
        free(autoencoder).initialize(Gaussian(nn.Linear(4, 3), 4), x, 0)


def test_data_drawn_anew_have_no_free_codes() -> None:
    data = load("digits", binarize="dynamic")
    autoencoder = systems.build("glo", data.event_shape, latent=2, hidden=(8,), head="bernoulli", steps=2)
    with pytest.raises(ValueError, match="Data that are drawn anew in each epoch"):
        train(autoencoder, data, epochs=2)


# Fitting.


def test_fit_finds_an_engine_inside_another() -> None:
    """The hook is the engine's, wherever it is: here the start of an ascent."""
    likelihood, x = Gaussian(nn.Linear(2, 3), 2, 0.5), torch.randn(20, 3)
    autoencoder = Autoencoder(likelihood, Ascent(AutoDecoder(2, Zeros()), GradientAscent(0.01), 2))
    train(autoencoder, x, epochs=1, batch_size=5)
    assert len(autoencoder.inference.init.codes) == 20  # type: ignore[union-attr, arg-type]


def options(out: Path) -> dict[str, Any]:
    return {"out": out, "batch_size": 8, "seed": 3}


def test_a_checkpoint_is_restored_into_a_new_model(tmp_path: Path) -> None:
    x = torch.randn(30, 3)
    autoencoder = model()
    train(autoencoder, x, epochs=2, **options(tmp_path / "run"))
    other = model()
    restore(other, tmp_path / "run")
    assert torch.equal(other.encode(x).z, autoencoder.encode(x).z)
    third = known(torch.randn(4, 3))
    third.load_state_dict(autoencoder.state_dict())
    assert torch.equal(third.encode(x).z, autoencoder.encode(x).z)


def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    x = torch.randn(30, 3)
    torch.manual_seed(0)
    whole = model()
    train(whole, x, epochs=4, **options(tmp_path / "whole"))
    torch.manual_seed(0)
    train(model(), x, epochs=2, **options(tmp_path / "parts"))
    resumed = model()
    train(resumed, x, epochs=4, resume=True, **options(tmp_path / "parts"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_codes_of_another_width_do_not_fit() -> None:
    autoencoder = known(torch.randn(6, 3))
    state = autoencoder.state_dict() | {"inference.codes": torch.zeros(6, 5)}
    with pytest.raises(ValueError, match=r"inference.codes: \(any, \*\(5,\)\) .* \(any, \*\(2,\)\) .* in the model"):
        checkpoint.restore(autoencoder, state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        autoencoder.load_state_dict(state)
    assert free(autoencoder).codes.shape == (6, 2)


@pytest.mark.usefixtures("unchecked_types")
def test_glo_encodes_held_out_digits(digits: Dataset) -> None:
    """Far better than the mean image, and near the error of training data under the same engine."""
    torch.manual_seed(0)
    autoencoder = systems.build("glo", digits.event_shape, latent=16)
    train(autoencoder, digits, epochs=40, optimizer=partial(torch.optim.Adam, lr=1e-2))

    def error(x: Tensor) -> float:
        with torch.no_grad():
            return (autoencoder.reconstruct(x) - x).square().mean().item()

    learned = error(digits.train)
    autoencoder.eval()
    seen, held_out = error(digits.train[:360]), error(digits.test)
    mean = (digits.test - digits.train.mean(0)).square().mean().item()
    assert max(learned, held_out) < 0.25 * mean
    assert held_out < 1.3 * seen
