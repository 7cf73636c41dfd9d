"""Checks of two systems of sequences: held-out reconstruction against a unigram model, in nats per token.

Digit rows: the bundled digits at a threshold, each row of 8 pixels one of 256 classes, 8 tokens per image. Names: made
by rules (syllables that share one vowel), characters as tokens, with an end. The unigram model predicts every token by
its frequency among training tokens, one added to each count. For each system, on held-out sequences:

- nats per token at the posterior mean, and the share of tokens that greedy decoding from there restores;
- -log p(x) per token by importance sampling, which includes the information in the code, and the ELBO below it;
- the KL of q(z|x) from the prior, in nats per sequence: 0 when the decoder ignores the code (posterior collapse).

Autoregressive decoders are trained with word dropout; one is trained without it, and collapses.

    python -m experiments.systems_sequences
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from experiments.common import arguments
from gae import systems
from gae.data import load
from gae.training import fit

DIGITS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sequence-vae, digit rows": ("sequence-vae", 40, {}),
    "sequence-vae, digit rows, parallel": ("sequence-vae", 40, {"autoregressive": False}),
    "attention-vae, digit rows": ("attention-vae", 25, {}),
    "attention-vae, digit rows, parallel": ("attention-vae", 25, {"autoregressive": False}),
}
NAMES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sequence-vae, names": ("sequence-vae", 30, {"latent": 4, "embedding": 16, "hidden": 48}),
    "attention-vae, names": ("attention-vae", 30, {"latent": 4, "width": 32, "layers": 1}),
}
COLLAPSED = ("sequence-vae", 20, {"word_dropout": 0.0})
CHECK = "held-out nats per token at the posterior mean, tokens restored, -log p(x) per token, against a unigram model"
GOAL = "all three better than the unigram model's"


def rows(images: Tensor) -> Tensor:
    """Images (N, 1, 8, 8) in [0, 1] as one class of 1 ... 256 per row, (N, 8)."""
    bits = (images.flatten(0, 1) > 0.5).long()
    return ((bits * 2 ** torch.arange(8)).sum(2) + 1).float()


def names(count: int, seed: int = 0) -> list[str]:
    """Two to four syllables with one vowel, and an ending."""
    generator = torch.Generator().manual_seed(seed)

    def draw(letters: str) -> str:
        return letters[int(torch.randint(len(letters), (), generator=generator))]

    words = []
    for _ in range(count):
        vowel, syllables = draw("aeiou"), int(torch.randint(2, 5, (), generator=generator))
        words.append("".join(draw("bdklmnrst") + vowel for _ in range(syllables)) + draw("nrs"))
    return words


def unigram(train: Tensor, test: Tensor, classes: int) -> dict[str, float]:
    """Nats per token of the training tokens' frequencies, one added to each count, and the share of the commonest."""
    share = (train[train > 0].long().bincount(minlength=classes)[1:] + 1.0).double()
    tokens = test[test > 0].long() - 1
    nats = -(share / share.sum()).log()[tokens].mean()
    return {"nats per token": float(nats), "tokens restored": float((tokens == share.argmax()).double().mean())}


def measured(
    train: Tensor, test: Tensor, classes: int, end: int | None, case: tuple[str, int, dict[str, Any]]
) -> dict[str, Any]:
    """Results of one system, trained and evaluated on held-out sequences."""
    name, epochs, options = case
    torch.manual_seed(0)
    model = systems.build(name, tuple(train.shape[1:]), classes=classes, end=end, **options)
    adam = partial(torch.optim.Adam, lr=2e-3 if len(train) > 1000 else 1e-2)
    fit(model, train, epochs=epochs, batch_size=64, optimizer=adam, progress=False)
    model.eval()
    tokens = (test > 0).sum()
    with torch.no_grad():
        encoding, restored = model.encode(test), model.reconstruct(test)
        assert encoding.q is not None
        value = {
            "nats per token": float(-model.decode(encoding.point).log_prob(test).sum() / tokens),
            "tokens restored": float(((restored == test) & (test > 0)).sum() / tokens),
            "-log p per token": float(-model.log_evidence(test, 200).log_p.sum() / tokens),
            "-ELBO per token": float(model(test) * len(test) / tokens),
            "KL (nats per sequence)": float(kl_divergence(encoding.q, model.likelihood.prior).mean()),
        }
    baseline = unigram(train, test, classes)
    holds = (
        value["nats per token"] < baseline["nats per token"]
        and value["-log p per token"] < baseline["nats per token"]
        and value["tokens restored"] > baseline["tokens restored"]
    )
    return {"check": CHECK, "value": value | {"unigram": baseline}, "goal": GOAL, "holds": holds}


def run() -> dict[str, Any]:
    """All rows with their numbers."""
    torch.set_num_threads(1)
    digits = load("digits")
    train, test = rows(digits.train), rows(digits.test)
    results = {name: measured(train, test, 257, None, case) for name, case in DIGITS.items()}
    entry = measured(train, test, 257, None, COLLAPSED)
    collapsed = entry["value"]["KL (nats per sequence)"] < 0.5
    what = {"check": "the KL without word dropout, for comparison", "goal": "below 0.5 nats: posterior collapse"}
    results["sequence-vae, digit rows, no word dropout"] = entry | what | {"holds": collapsed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "names.txt")
        path.write_text("\n".join(names(600)), encoding="utf-8")
        text = load(path)
    assert text.vocabulary is not None
    for name, case in NAMES.items():
        results[name] = measured(text.train, text.test, text.vocabulary.classes, 1, case)
    return results


if __name__ == "__main__":
    arguments(__doc__)
    print(json.dumps(run(), indent=1))
