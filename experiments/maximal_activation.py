"""Claim: the image that maximally activates a digits classifier is far from all digits; a prior brings it close.

The latent is the image, the observation is the class: q(class|image) is a classifier of the bundled digits,
and maximal activation is MAP inference of the image (ledger D20). For each class an ascent from several random starts
finds the image under no prior but the box [0, 1], under a Gaussian fitted to the training images, and as the mean of a
VAE's decoder with z ~ N(0, I). A second classifier, of another architecture and seed, judges whether the image
shows the class. The bare logit, whose optimum differs by the softmax normaliser, is maximised too.

In the box log q(class|image) comes so close to 0 that its gradient vanishes before the ascent ends. The log odds of the
class have the same maximiser, and their gradient does not vanish: both are maximised.

    python -m experiments.maximal_activation
"""

from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal, ReshapeTransform, TransformedDistribution
from torch.nn.functional import cross_entropy, logsigmoid

from experiments.common import arguments, write
from gae import nets
from gae.data import Dataset, load
from gae.inference import Adam, Ascent, Box, Constant, Detach, Projected, Scheduled, Step
from gae.likelihood import Activation, StandardNormal
from gae.systems import vae
from gae.training import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = 10
KINDS = {
    "logit": "bare logit, box",
    "log_prob": "log probability, box",
    "log_odds": "log odds, box",
    "gaussian": "Gaussian prior, box",
    "decoder": "decoder as prior",
}


@dataclass(frozen=True)
class Configuration:
    data: str = "digits"
    hidden: tuple[int, ...] = (128, 128)
    channels: tuple[int, ...] = (16, 32)
    seeds: tuple[int, int] = (0, 1)  # of the classifier, fully connected, and of the judge, convolutional
    classifier_epochs: int = 60
    classifier_rate: float = 2e-3
    weight_decay: float = 1e-4
    latent: int = 8
    vae_epochs: int = 150
    vae_rate: float = 2e-3
    batch_size: int = 64
    ridge: float = 0.01  # added to the variances of the Gaussian prior
    threshold: float = 1e3  # of logits and log odds, see ``Activation``
    starts: int = 16
    steps: int = 1000
    rate: float = 0.05  # of Adam at the first step; it falls to 0
    betas: tuple[float, float] = (0.9, 0.9)  # log q levels off: Adam has to forget how large its gradient was


class GaussianPrior(nn.Module):
    """N(mean, covariance + ridge · I) of images (N, *X)."""

    def __init__(self, x: Tensor, ridge: float):
        super().__init__()
        self.shape, rows = x.shape[1:], x.flatten(1)
        covariance = rows.T.cov() + ridge * torch.eye(rows.shape[1], dtype=x.dtype)
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("factor", torch.linalg.cholesky(covariance))

    def forward(self) -> Distribution:
        normal = MultivariateNormal(self.mean, scale_tril=self.factor, validate_args=False)
        return TransformedDistribution(normal, ReshapeTransform(self.mean.shape, self.shape), validate_args=False)


class LogOdds(nn.Module):
    """Logits (N, classes) to log q(class|x) / (1 - q(class|x)): exact also where the probability rounds to 1."""

    def forward(self, logits: Tensor) -> Tensor:
        own = torch.eye(logits.shape[1], dtype=torch.bool)
        return logits - logits.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(2)


def trained(net: nn.Module, data: Dataset, c: Configuration, seed: int) -> nn.Module:
    """A classifier, by cross-entropy; in double precision afterwards, where probabilities near 1 differ."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), c.classifier_rate, weight_decay=c.weight_decay)
    for _ in range(c.classifier_epochs):
        for rows in torch.randperm(len(data.train), generator=order).split(c.batch_size):
            optimizer.zero_grad()
            cross_entropy(net(data.train[rows]), data.train_labels[rows]).backward()
            optimizer.step()
    return net.double().requires_grad_(False)


def classifiers(data: Dataset, c: Configuration) -> tuple[nn.Module, nn.Module]:
    """The classifier to activate, and the judge."""
    torch.manual_seed(c.seeds[0])
    first = trained(nets.mlp(data.event_shape, c.hidden, CLASSES), data, c, c.seeds[0])
    torch.manual_seed(c.seeds[1])
    return first, trained(nets.conv_encoder(data.event_shape, CLASSES, c.channels), data, c, c.seeds[1])


def decoder(data: Dataset, c: Configuration) -> nn.Module:
    """A VAE's decoder, codes to mean images."""
    torch.manual_seed(c.seeds[0])
    model = vae(data.event_shape, c.latent)
    adam = partial(torch.optim.Adam, lr=c.vae_rate)
    fit(model, data, epochs=c.vae_epochs, batch_size=c.batch_size, optimizer=adam, seed=c.seeds[0], progress=False)
    return model.likelihood.decoder.double().requires_grad_(False)


def ascended(likelihood: Activation, begin: Tensor, step: Step, c: Configuration) -> tuple[Tensor, Tensor]:
    """Latents (classes, starts, *Z) from the same starts (starts, *Z) for every class, and their log joint, in nats."""
    x = torch.arange(CLASSES, dtype=begin.dtype).repeat_interleave(c.starts)
    start = Constant(begin.repeat(CLASSES, *[1] * (begin.dim() - 1)))
    with torch.no_grad():
        encoding = Ascent(start, step, c.steps, adjoint=Detach())(likelihood, x)
    return encoding.z[0].unflatten(0, (CLASSES, c.starts)), encoding.log_joint[0].unflatten(0, (CLASSES, c.starts))


def encoded(kind: str, classifier: nn.Module, decode: nn.Module, x: Tensor, c: Configuration) -> tuple[Tensor, Tensor]:
    """Best image of each class (classes, *X), and the values reached by its starts (classes, starts), in nats."""
    generator, shape = torch.Generator().manual_seed(c.seeds[0]), tuple(x.shape[1:])
    climb = Scheduled(Adam(c.rate, c.betas), lambda t: 1 - t / c.steps)
    begin, step = torch.rand(c.starts, *shape, generator=generator, dtype=x.dtype), Projected(climb, Box(0.0, 1.0))
    match kind:
        case "logit":
            likelihood = Activation(classifier, shape, "logit", threshold=c.threshold)
        case "log_odds":
            likelihood = Activation(nn.Sequential(classifier, LogOdds()), shape, "logit", threshold=c.threshold)
        case "log_prob":
            likelihood = Activation(classifier, shape)
        case "gaussian":
            likelihood = Activation(classifier, shape, prior=GaussianPrior(x, c.ridge))
        case _:
            prior = StandardNormal(c.latent).to(x)
            likelihood = Activation(nn.Sequential(decode, classifier), c.latent, prior=prior)
            begin, step = torch.randn(c.starts, c.latent, generator=generator, dtype=x.dtype), climb
    latent, reached = ascended(likelihood, begin, step, c)
    best = latent[torch.arange(CLASSES), reached.argmax(1)]
    return (decode(best) if kind == "decoder" else best), reached


def reported(
    images: Tensor, reached: Tensor, classifier: nn.Module, judge: nn.Module, x: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Every number of one kind of image, per class."""
    odds, logits, others = LogOdds()(classifier(images)), classifier(images), LogOdds()(judge(images))
    distance = torch.cdist(images.flatten(1), x.flatten(1))
    nearest = distance.argmin(1)
    return {
        "log_prob": logsigmoid(odds).diagonal().tolist(),
        "log_odds": odds.diagonal().tolist(),
        "logit": logits.diagonal().tolist(),
        "classified_as": logits.argmax(1).tolist(),
        "log_prob_exceeds_every_training_image": (odds.diagonal() > LogOdds()(classifier(x)).amax(0)).tolist(),
        "logit_exceeds_every_training_image": (logits.diagonal() > classifier(x).amax(0)).tolist(),
        "judge_prob": others.sigmoid().diagonal().tolist(),
        "judged_as": judge(images).argmax(1).tolist(),
        "nearest_training_image": nearest.tolist(),
        "nearest_label": labels[nearest].tolist(),
        "nearest_distance": distance.amin(1).tolist(),
        "lowest_and_highest_value": [float(images.min()), float(images.max())],
        "starts_within_a_hundredth_nat": (reached >= reached.amax(1, True) - 0.01).double().mean(1).tolist(),
    }


def summary(report: dict[str, Any]) -> dict[str, float]:
    """Means over classes, and how many of the classes agree."""
    numbers = ("log_prob", "log_odds", "logit", "judge_prob", "nearest_distance", "starts_within_a_hundredth_nat")
    names = ("classified_as", "judged_as", "nearest_label")
    exceeded = [name for name in report if name.endswith("exceeds_every_training_image")]
    return {
        "prob": fmean(torch.tensor(report["log_prob"]).exp().tolist()),
        **{name: fmean(report[name]) for name in numbers},
        **{name: sum(report[name]) for name in exceeded},
        **{name: sum(predicted == i for i, predicted in enumerate(report[name])) for name in names},
    }


def moved(images: dict[str, Tensor], reports: dict[str, Any]) -> dict[str, float]:
    """Shift of the optimum of the bare logit by the softmax normaliser (ledger D20), in means over classes."""
    bare, normal = reports["logit"], reports["log_odds"]
    pairs = {name: list(zip(bare[name], normal[name], strict=True)) for name in ("logit", "log_odds")}
    return {
        "distance_of_the_optima": float((images["logit"] - images["log_odds"]).flatten(1).norm(dim=1).mean()),
        "logit_lost_at_the_optimum_of_the_log_odds": fmean(a - b for a, b in pairs["logit"]),
        "log_odds_lost_at_the_optimum_of_the_logit": fmean(b - a for a, b in pairs["log_odds"]),
        "classes_where_both_are_lost": sum(
            a > b and d > c for (a, b), (c, d) in zip(pairs["logit"], pairs["log_odds"], strict=True)
        ),
    }


def drawn(images: dict[str, Tensor], reports: dict[str, Any], x: Tensor) -> "Figure":
    """Figure of the images, a row per kind, with the nearest training image below each."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2 * len(images), CLASSES, figsize=(11, 2.35 * len(images)), layout="constrained")
    for row, (kind, best) in enumerate(images.items()):
        report = reports[kind]
        near = report["nearest_training_image"]
        for i in range(CLASSES):
            for panel, image in ((axes[2 * row, i], best[i]), (axes[2 * row + 1, i], x[near[i]])):
                panel.imshow(image[0], cmap="gray", vmin=0, vmax=1)
                panel.set(xticks=[], yticks=[])
            judged, prob = report["judged_as"][i], report["judge_prob"][i]
            axes[2 * row, i].set_title(f"{i}; judge: {judged}\np({i}) = {prob:.2f}", fontsize=8)
            axes[2 * row + 1, i].set_xlabel(
                f"{report['nearest_label'][i]}, {report['nearest_distance'][i]:.1f}", fontsize=8
            )
        axes[2 * row, 0].set_ylabel(KINDS[kind].replace(", ", ",\n"), fontsize=8)
        axes[2 * row + 1, 0].set_ylabel("nearest\ntraining image", fontsize=8)
    figure.suptitle(
        "Images that activate class 0 … 9 most; under each the nearest training image, its label and distance"
    )
    return figure


def main(c: Configuration) -> None:
    import matplotlib

    matplotlib.use("Agg")
    data = load(c.data)
    classifier, judge = classifiers(data, c)
    decode = decoder(data, c)
    x, test = data.train.double(), data.test.double()
    rate = [float((net(test).argmax(1) == data.test_labels).double().mean()) for net in (classifier, judge)]
    usual = float(torch.cdist(test.flatten(1), x.flatten(1)).amin(1).mean())
    print(f"test accuracy {rate[0]:.3f}, judge {rate[1]:.3f}; a test image is {usual:.2f} from a training image")
    noise = torch.rand(1000, *data.event_shape, generator=torch.Generator().manual_seed(c.seeds[0])).double()
    certainty = float(judge(noise).softmax(1).amax(1).mean())
    images, reports = {}, {}
    for kind in KINDS:
        images[kind], reached = encoded(kind, classifier, decode, x, c)
        reports[kind] = reported(images[kind], reached, classifier, judge, x, data.train_labels)
        print(kind, {name: round(value, 4) for name, value in summary(reports[kind]).items()}, flush=True)
    results = {
        "data_hash": data.hash,
        "test_accuracy": {"classifier": rate[0], "judge": rate[1]},
        "mean_distance_of_a_test_image_to_its_nearest_training_image": usual,
        "mean_certainty_of_the_judge_on_uniform_noise": certainty,
        "logit_against_log_odds": moved(images, reports),
        "summary": {kind: summary(report) for kind, report in reports.items()},
        "classes": reports,
    }
    print(results["logit_against_log_odds"])
    write("maximal_activation", c, results, drawn(images, reports, x))


if __name__ == "__main__":
    arguments(__doc__)
    main(Configuration())
