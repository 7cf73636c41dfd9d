"""Checks of two systems of sequences against a decoder without a code and a unigram model, in nats per token.

Digit rows: the bundled digits at a threshold, each row of 8 pixels one of 256 classes, 8 tokens per image. Names: made
by rules (syllables that share one vowel), characters as tokens, with an end. The unigram model predicts every token by
its frequency among training tokens, one added to each count. The decoder *without its code* is the autoregressive
decoder of the same system, trained at z = 0, where its density is exact; it is the strongest baseline. Each training
ends by the loss on a tenth of the training sequences. Means over three trainings, with their standard errors. For each
system, on held-out sequences:

- nats per token at the posterior mean, and the share of tokens that greedy decoding from there restores;
- -log p(x) per token by importance sampling, which includes the information in the code, with the share of sequences
  for which it is tight (else it is an upper bound), and the ELBO below it;
- the KL of q(z|x) from the prior, in nats per sequence: 0 when the decoder ignores the code (posterior collapse).

Autoregressive decoders with a code are trained with word dropout; one is trained without it, and collapses.

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
from experiments.study import over_trainings
from gae import Autoencoder, systems
from gae.autoencoder import log_evidence
from gae.data import load
from gae.inference import Zeros
from gae.objective import joint
from gae.training import fit

Case = tuple[str, dict[str, Any]]
SEEDS = (0, 1, 2)
EPOCHS, PATIENCE = 60, 5
WITHOUT_CODE = "without its code"

DIGITS: dict[str, Case] = {
    "sequence-vae, digit rows": ("sequence-vae", {}),
    "sequence-vae, digit rows, parallel": ("sequence-vae", {"autoregressive": False}),
    "attention-vae, digit rows": ("attention-vae", {}),
    "attention-vae, digit rows, parallel": ("attention-vae", {"autoregressive": False}),
}
NAMES: dict[str, Case] = {
    "sequence-vae, names": ("sequence-vae", {"latent": 4, "embedding": 16, "hidden": 48}),
    "attention-vae, names": ("attention-vae", {"latent": 4, "width": 32, "layers": 1}),
}
COLLAPSED: Case = ("sequence-vae", {"word_dropout": 0.0})
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


def trained(train: Tensor, classes: int, end: int | None, case: Case, seed: int, code: bool = True) -> Autoencoder:
    """A system, or its decoder without word dropout at z = 0."""
    name, options = case
    torch.manual_seed(seed)
    options = options if code else options | {"word_dropout": 0.0, "autoregressive": True}
    model = systems.build(name, tuple(train.shape[1:]), classes=classes, end=end, **options)
    if not code:
        model = Autoencoder(model.likelihood, Zeros(), joint, accepts_rescaling=True)
    adam = partial(torch.optim.Adam, lr=2e-3 if len(train) > 1000 else 1e-2)
    fit(
        model,
        train,
        epochs=EPOCHS,
        batch_size=64,
        optimizer=adam,
        validation=0.1,
        patience=PATIENCE,
        seed=seed,
        progress=False,
    )
    return model.eval()


@torch.no_grad()
def evaluated(model: Autoencoder, test: Tensor) -> dict[str, float]:
    """Results of a system on held-out sequences."""
    tokens = (test > 0).sum()
    encoding, restored = model.encode(test), model.reconstruct(test)
    evidence = log_evidence(model, test, 2000, method="importance")
    assert encoding.q is not None and evidence.tight is not None
    return {
        "nats per token": float(-model.decode(encoding.point).log_prob(test).sum() / tokens),
        "tokens restored": float(((restored == test) & (test > 0)).sum() / tokens),
        "-log p per token": float(-evidence.log_p.sum() / tokens),
        "share of tight log p": float(evidence.tight.double().mean()),
        "-ELBO per token": float(model(test) * len(test) / tokens),
        "KL (nats per sequence)": float(kl_divergence(encoding.q, model.likelihood.prior).mean()),
    }


@torch.no_grad()
def without_code(model: Autoencoder, test: Tensor) -> float:
    """-log p(x) per token of a decoder that was trained at z = 0."""
    zero = model.encode(test).point
    return float(-model.decode(zero).log_prob(test).sum() / (test > 0).sum())


def measured(train: Tensor, test: Tensor, classes: int, end: int | None, case: Case) -> dict[str, Any]:
    """Means over trainings of one system, beside the decoder without its code and the unigram model."""
    models = [trained(train, classes, end, case, seed) for seed in SEEDS]
    runs = [evaluated(model, test) for model in models]
    bare = [without_code(trained(train, classes, end, case, seed, code=False), test) for seed in SEEDS]
    value = {key: over_trainings([run[key] for run in runs]) for key in runs[0]}
    gain = over_trainings([nats - run["-log p per token"] for nats, run in zip(bare, runs, strict=True)])
    baseline = unigram(train, test, classes)
    holds = (
        value["nats per token"]["mean"] < baseline["nats per token"]
        and value["-log p per token"]["mean"] < baseline["nats per token"]
        and value["tokens restored"]["mean"] > baseline["tokens restored"]
    )
    others = {WITHOUT_CODE: over_trainings(bare), "gain by the code, nats per token": gain, "unigram": baseline}
    return {"check": CHECK, "value": value | others, "goal": GOAL, "holds": holds}


def run() -> dict[str, Any]:
    """All rows with their numbers."""
    torch.set_num_threads(1)
    digits = load("digits")
    train, test = rows(digits.train), rows(digits.test)
    results = {name: measured(train, test, 257, None, case) for name, case in DIGITS.items()}
    entry = measured(train, test, 257, None, COLLAPSED)
    collapsed = entry["value"]["KL (nats per sequence)"]["mean"] < 0.5
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
