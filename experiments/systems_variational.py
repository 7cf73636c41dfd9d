"""Checks of the table of systems that take minutes: the GAN on digits, and convolutional VAEs on MNIST in two sizes.

    python -m experiments.systems_variational

A GAN reports no likelihood, so other quantities are measured over three seeds: the classes of its samples according to
a classifier of real digits; the distance of samples to the nearest training image, and of held-out images to the
nearest sample, compared with a Gaussian with the mean and covariance of the data; the accuracy of its discriminator on
held-out images and new samples; and the error of codes inferred for its own samples. Training lowers a divergence
between the same two distributions as maximum likelihood without codes: data and marginal (ledger D01).
"""

import json
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn.functional import pad

from experiments.common import arguments, mnist
from gae import Autoencoder, systems
from gae.data import Dataset, load
from gae.training import fit
from gae.training.adversarial import Adversarial

SEEDS = (0, 1, 2)
GAME = partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))
EPOCHS = 300  # of the GAN
SAMPLES = 1000
TRAINING, TESTING = 20_000, 2000  # images of MNIST


def nearest(x: Tensor, among: Tensor) -> float:
    """The mean distance to the nearest neighbour, of flat images."""
    return float(torch.cdist(x.flatten(1), among.flatten(1)).amin(1).mean())


def play(digits: Dataset, seed: int) -> Adversarial:
    """Trains a GAN on digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        game = systems.gan(digits.event_shape)
    fit(game, digits, epochs=EPOCHS, batch_size=64, optimizer=GAME, seed=seed, progress=False)
    return game.eval()


@torch.no_grad()
def accuracy(game: Adversarial, x: Tensor) -> float:
    """Accuracy of the discriminator on held-out images, with its instance noise, and on samples."""
    assert game.corruption is not None
    real, false = game.discriminator(game.corruption(x)) > 0, game.discriminator(game.sample(SAMPLES)) < 0
    return 0.5 * float(real.float().mean() + false.float().mean())


@torch.no_grad()
def judge(game: Adversarial, digits: Dataset, classifier: Any) -> dict[str, Any]:
    """Metrics of one GAN."""
    means = game.sample(SAMPLES, mean=True)
    shares = np.bincount(classifier.predict(means.flatten(1).numpy()), minlength=10) / SAMPLES
    x = game.sample(200)
    encoding = game.encode(x)
    decoded = game.likelihood.point(game.decode(encoding.point))
    squares = (decoded - x).square().flatten(1).mean(1)
    return {
        "smallest share of a class": float(shares.min()),
        "sample to data": nearest(means, digits.train),
        "held-out data to sample": nearest(digits.test, means),
        "discriminator's accuracy": accuracy(game, digits.test),
        "inversion error": float(squares.mean()),
        "worst inversion error": float(squares.max()),
        "reconstruction error of held-out data": float((game.reconstruct(digits.test) - digits.test).square().mean()),
    }


def gan() -> dict[str, Any]:
    """The row ``gan``."""
    from sklearn.neighbors import KNeighborsClassifier

    digits = load("digits")
    assert digits.train_labels is not None
    classifier = KNeighborsClassifier(3).fit(digits.train.flatten(1).numpy(), digits.train_labels.numpy())
    torch.manual_seed(0)
    flat = digits.train.flatten(1)
    gaussian = MultivariateNormal(flat.mean(0), flat.T.cov() + 1e-4 * torch.eye(64)).sample(torch.Size((SAMPLES,)))
    references = {
        "held-out data to data": nearest(digits.test, digits.train),
        "held-out data to 1000 of the data": nearest(digits.test, digits.train[:SAMPLES]),
        "Gaussian sample to data": nearest(gaussian, digits.train),
        "held-out data to Gaussian sample": nearest(digits.test, gaussian),
    }
    runs = []
    for seed in SEEDS:
        game = play(digits, seed)
        torch.manual_seed(seed)
        runs.append(judge(game, digits, classifier))
        print(f"gan, seed {seed}: {runs[-1]}", flush=True)
    holds = all(
        run["inversion error"] < 1e-2
        and run["smallest share of a class"] >= 0.05
        and run["sample to data"] < 1.25 * references["held-out data to data"]
        and run["held-out data to sample"] < 1.25 * references["held-out data to 1000 of the data"]
        and run["discriminator's accuracy"] < 0.9
        for run in runs
    )
    return {
        "check": "trains on digits; inversion of its own samples, squared error per pixel",
        "value": {"runs": runs, "references": references},
        "goal": "each seed: inversion < 1e-2; every class ≥ 5 % of samples; distances of samples to data and of "
        "held-out data to samples < 1.25 times those of data to data; discriminator right < 90 %",
        "holds": holds,
    }


def short_training(x: Tensor, **options: Any) -> Autoencoder:
    """A convolutional VAE after two epochs."""
    torch.manual_seed(0)
    model = systems.conv_vae(tuple(x.shape[1:]), latent=16, channels=(16, 32), **options)
    fit(model, x, epochs=2, batch_size=64, optimizer=partial(torch.optim.Adam, lr=3e-3), progress=False)
    return model.eval()


@torch.no_grad()
def bound(model: Autoencoder, x: Tensor) -> float:
    """The mean ELBO, in nats."""
    return float(model.objective(model.encode(x)).mean())


def gaussian_images(margin: int) -> dict[str, Any]:
    """The row of ``conv-vae`` on grey MNIST, padded by a margin, with one learned decoder variance."""
    data = mnist()
    x, test = (pad(part, (margin,) * 4) for part in (data.train[:TRAINING], data.test[:TESTING]))
    model = short_training(x, scale=0.2)
    linear = systems.ppca(tuple(x.shape[1:]), latent=16).double()
    fit(linear, x.double(), epochs=20, progress=False)
    evidence = float(linear.log_evidence(test.double()).log_p.mean().detach())
    elbo = bound(model, test)
    learned = float(model.likelihood.scale.detach())  # type: ignore[arg-type, union-attr]
    return {
        "check": f"test ELBO after two epochs of 20,000 images of {x.shape[2]} × {x.shape[3]}, beside PPCA's log p(x)",
        "value": {"elbo": elbo, "ppca": evidence, "learned scale": learned},
        "goal": "ELBO > exact log p(x) of PPCA at equal code width, in nats",
        "holds": elbo > evidence,
    }


def binary_images() -> dict[str, Any]:
    """The row of ``conv-vae`` on black and white MNIST."""
    data = mnist("threshold")
    x, test = data.train[:TRAINING], data.test[:TESTING]
    elbo = bound(short_training(x, head="bernoulli"), test)
    share = (x.sum(0) + 1) / (len(x) + 2)  # of black pixels, by Laplace's rule
    independent = float((test * share.log() + (1 - test) * (-share).log1p()).flatten(1).sum(1).mean())
    return {
        "check": "test ELBO after two epochs of 20,000 binary images, beside independent pixels",
        "value": {"elbo": elbo, "independent pixels": independent},
        "goal": "ELBO > log p(x) of independent pixels + 50 nats",
        "holds": elbo > independent + 50,
    }


def run() -> dict[str, Any]:
    """All rows: check, value, goal and whether it is met."""
    torch.set_num_threads(1)
    rows = {
        "conv-vae, 28 × 28": gaussian_images(0),
        "conv-vae, 32 × 32": gaussian_images(2),
        "conv-vae, Bernoulli": binary_images(),
        "gan": gan(),
    }
    assert all(math.isfinite(row["value"]["elbo"]) for row in rows.values() if "elbo" in row["value"])
    return rows


if __name__ == "__main__":
    arguments(__doc__)
    print(json.dumps(run(), indent=1, ensure_ascii=False))
