"""Claim: t-SNE's ascent ends where scikit-learn's exact method does, over 10 subsets of the digits and 4 starts each.

A trajectory of 1000 steps is chaotic: rounding alone moves its end by a few per cent, in both libraries. So ends are
compared in distribution, by the median of KL(P ‖ Q) ours / scikit-learn's, both from the same starts: the principal
components and random draws of both libraries.
"""

import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE as SkTSNE
from torch import Tensor

from experiments.common import ROOT, arguments, write
from gae import systems
from gae.data import load
from gae.inference import Constant, DecoderInit, EarlyExaggeration, PrincipalComponents
from gae.likelihood import TSNE


@dataclass(frozen=True)
class Configuration:
    seed: int = 0
    subsets: int = 10
    points: int = 200
    perplexity: float = 20.0


def starts(likelihood: TSNE, x: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Codes (N, 2) in float32, as scikit-learn draws them (``TSNE._fit``) and as we do."""
    torch.manual_seed(seed)
    components = PCA(2, random_state=seed).fit_transform(x.flatten(1).numpy()).astype(np.float32)
    random = 1e-4 * np.random.RandomState(seed).standard_normal((len(x), 2)).astype(np.float32)
    one = x.unsqueeze(0)
    return {
        "components, scikit-learn": components / np.std(components[:, 0]) * 1e-4,
        "components": PrincipalComponents()(likelihood, one).z[0, 0].numpy(),
        "random, scikit-learn": random,
        "random": DecoderInit()(likelihood, one).z[0, 0].float().numpy(),
    }


@torch.no_grad()
def ends(x: Tensor, perplexity: float, seed: int) -> dict[str, dict[str, float]]:
    """KL(P ‖ Q) in nats from each start: ours in float32 and float64, scikit-learn's, and of its layout by our P."""
    model = systems.tsne(tuple(x.shape[1:]), points=len(x), perplexity=perplexity)
    likelihood, engine = model.likelihood, model.inference
    assert isinstance(likelihood, TSNE)
    divergences = {}
    for name, start in starts(likelihood, x, seed).items():
        assert isinstance(engine.init, EarlyExaggeration)  # type: ignore[union-attr]
        engine.init.engine.init = Constant(torch.from_numpy(start))  # type: ignore[union-attr]
        row = {}
        for dtype in (torch.float32, torch.float64):
            one = x.to(dtype).unsqueeze(0)
            z = model.to(dtype).encode(one).z
            row[f"gae, {dtype}".replace("torch.", "")] = float(
                likelihood.double().divergence(x.double()[None], z.double())
            )
        oracle = SkTSNE(perplexity=perplexity, method="exact", init=start.copy())
        layout = torch.as_tensor(oracle.fit_transform(x.flatten(1).double().numpy())).double()
        row["scikit-learn, by its own account"] = float(oracle.kl_divergence_)
        row["scikit-learn"] = float(likelihood.double().divergence(x.double()[None], layout[None, None]))
        divergences[name] = row
    return divergences


def main(config: Configuration = Configuration()) -> None:
    digits = load("digits")
    images = torch.cat([digits.train, digits.test])
    rows: list[dict[str, Any]] = []
    for subset in range(config.subsets):
        index = np.random.default_rng([config.seed, subset]).choice(len(images), config.points, replace=False)
        for start, row in ends(images[index], config.perplexity, subset).items():
            rows.append({"subset": subset, "start": start, **row})
            print(*rows[-1].values(), flush=True)
    medians = {}
    for kind in ("gae, float32", "gae, float64"):
        ratios = np.array([row[kind] / row["scikit-learn"] for row in rows])
        spread = float(np.subtract(*np.quantile(ratios, [0.75, 0.25])))
        medians[kind] = {"median ratio": float(np.median(ratios)), "interquartile range": spread}
    print(medians)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    figure = Figure(figsize=(4, 4))
    axis = figure.add_subplot(xlabel="scikit-learn, KL in nats", ylabel="gae, KL in nats")
    for kind in medians:
        axis.scatter(*zip(*[(row["scikit-learn"], row[kind]) for row in rows], strict=True), s=10, label=kind)
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color="grey", linewidth=0.8)
    axis.legend()
    write("tsne_starts", config, {"medians": medians, "rows": rows, "commit": commit}, figure)


if __name__ == "__main__":
    arguments(__doc__)
    main()
