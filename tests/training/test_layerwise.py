"""Greedy layer-wise pre-training, and the classifier on top."""

from functools import partial

import pytest
import torch
from margins import within
from torch import nn
from torch.nn.functional import cross_entropy

from gae import Autoencoder, systems
from gae.data import Dataset
from gae.inference import Amortized, Ascent
from gae.likelihood import Bernoulli, Flat, Gaussian
from gae.objective import joint
from gae.training import fit
from gae.training.corruption import GaussianNoise
from gae.training.layerwise import LabelHead, classifier, labelled, predict, pretrain

train = partial(fit, progress=False)
pre = partial(pretrain, progress=False)
Adam = partial(torch.optim.Adam, lr=2e-3)
SGD = partial(torch.optim.SGD, lr=1e-2)


def stack(seed: int = 0, hidden: tuple[int, ...] = (6, 5), head: str = "gaussian") -> Autoencoder:
    torch.manual_seed(seed)
    return systems.build("stacked-ae", (2, 4), hidden=hidden, latent=3, head=head)


def layers(model: Autoencoder) -> tuple[nn.Sequential, nn.Sequential]:
    return model.inference.guide, model.likelihood.decoder  # type: ignore[return-value]


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5, 4)])
def test_layers_mirror_each_other(hidden: tuple[int, ...]) -> None:
    encoder, decoder = layers(stack(hidden=hidden))
    assert len(encoder) == len(decoder) == len(hidden) + 1
    shapes, x = [(2, 4), *((width,) for width in hidden), (3,)], torch.randn(7, 2, 4)
    for i, (down, up) in enumerate(zip(encoder, reversed(decoder), strict=True)):
        code = down(x)
        assert code.shape == (7, *shapes[i + 1]) and up(code).shape == (7, *shapes[i])
        x = code


def test_each_layer_is_fitted_to_the_codes_below() -> None:
    """Equals two explicit calls of ``fit`` with the same seed and initial weights."""
    x, model, other = torch.randn(40, 2, 4), stack(hidden=(6,)), stack(hidden=(6,))
    histories = pre(model, x, epochs=3, optimizer=SGD, seed=5)
    encoder, decoder = layers(other)
    first = Autoencoder(Gaussian(decoder[1], 6, prior=Flat(6), relative=True), Amortized(encoder[0]), joint)
    losses = [train(first, x, epochs=3, optimizer=SGD, seed=5)]
    second = Autoencoder(Gaussian(decoder[0], 3, prior=Flat(3)), Amortized(encoder[1]), joint)
    losses += [train(second, encoder[0](x).detach(), epochs=3, optimizer=SGD, seed=5)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for found, wanted in zip(histories, losses, strict=True):
        assert [row.train_loss for row in found.rows] == [row.train_loss for row in wanted.rows]
        assert found.rows[-1].train_loss < found.rows[0].train_loss


def test_the_lowest_layer_keeps_the_law_of_the_data() -> None:
    model, x = stack(head="bernoulli"), torch.rand(30, 2, 4).round()
    first = pre(model, x, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.0), batch_size=30)[0].rows[0].train_loss
    encoder, decoder = layers(model)
    wanted = -Bernoulli(decoder[2], 6, prior=Flat(6)).log_joint(x, encoder[0](x).unsqueeze(0)).mean()
    assert first == pytest.approx(wanted.item(), rel=1e-5)
    with pytest.raises(ValueError, match="Bernoulli needs x in"):
        pre(model, x + 0.5, epochs=1)


def test_corruption_reaches_every_layer() -> None:
    shapes = []

    class Counted(GaussianNoise):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(x.shape[1:]))
            return super().forward(x)

    pre(stack(), torch.randn(10, 2, 4), epochs=1, corruption=Counted(0.1))
    assert shapes == [(2, 4), (6,), (5,)]


def test_what_cannot_be_pretrained() -> None:
    x = torch.randn(10, 2, 4)
    with pytest.raises(TypeError, match=r"`nn.Sequential`s with the same number of layers.*stacked-ae"):
        pre(Autoencoder(Gaussian(nn.Linear(2, 8), 2), Ascent()), x)
    uneven = stack()
    uneven.inference.guide = uneven.inference.guide[:2]
    with pytest.raises(TypeError, match="the same number of layers"):
        pre(uneven, x)
    with pytest.raises(ValueError, match="out is for a single run"):
        pre(stack(), x, out="run")


# The classifier.


def test_the_loss_of_a_classifier_is_the_cross_entropy() -> None:
    model, x, y = stack(), torch.randn(9, 2, 4), torch.arange(9) % 4
    head = classifier(model, 4)
    logits = head.likelihood.decoder(model.inference.guide(x))  # type: ignore[operator, union-attr]
    assert torch.allclose(head(labelled(x, y)), cross_entropy(logits, y))
    assert torch.equal(predict(head, x), logits.argmax(1))
    assert torch.equal(predict(head, x), predict(head, x + 0))
    assert head.inference.guide[1] is model.inference.guide  # type: ignore[index]


def test_corruption_leaves_the_labels_alone() -> None:
    """The encoder sees noisy pixels, and the clean label is scored."""
    head = classifier(stack(), 4, GaussianNoise(5.0))
    x, y = torch.randn(9, 2, 4), torch.arange(9) % 4
    torch.manual_seed(1)
    seen = labelled(x, y) + 5 * torch.randn(9, 9)
    torch.manual_seed(1)
    found = head(labelled(x, y))
    logits = head.likelihood.decoder(head.inference.guide(seen))  # type: ignore[operator, union-attr]
    assert torch.allclose(found, cross_entropy(logits, y), rtol=1e-5)


def test_what_cannot_be_classified() -> None:
    with pytest.raises(TypeError, match="needs the codes of an encoder, got `Ascent`"):
        classifier(Autoencoder(Gaussian(nn.Linear(2, 8), 2), Ascent()), 3)
    with pytest.raises(ValueError, match=r"must return logits \(N, C\), got outputs of shape \(3, 4\)"):
        LabelHead(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))), 2, 5)
    head = classifier(stack(), 3)
    for label in (3, -1):
        with pytest.raises(ValueError, match=r"LabelHead needs x in the classes 0 \.\.\. 2"):
            head.encode(labelled(torch.zeros(2, 2, 4), torch.tensor([0, label])))
    with pytest.raises(ValueError, match=r"x must have shape \(B, 9\), got \(2, 8\)"):
        head.encode(torch.zeros(2, 8))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_pretrained_and_fine_tuned_it_reads_digits(digits: Dataset) -> None:
    """At least 95 % of the test digits after a few epochs; chance level is 10 %."""
    torch.manual_seed(0)
    noise = GaussianNoise(0.2)
    model = systems.build("stacked-ae", digits.event_shape, hidden=(128,))
    pre(model, digits, epochs=8, batch_size=32, optimizer=Adam, corruption=noise)
    head = classifier(model, 10, noise)
    rows = labelled(digits.train, digits.train_labels)
    train(head, rows, epochs=15, batch_size=32, optimizer=partial(torch.optim.Adam, lr=3e-3))
    within("accuracy", (predict(head, digits.test) == digits.test_labels).float().mean(), above=0.95)
