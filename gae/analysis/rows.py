"""Results of a model for each observation, in batches: codes, reconstructions and scores."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from gae.analysis.anomaly import Criterion, anomaly_scores
from gae.autoencoder import Autoencoder, log_evidence
from gae.data.progress import counted
from gae.evidence.automatic import in_turn
from gae.inference import Status
from gae.training.group import over_blocks

if TYPE_CHECKING:
    import lightning_fabric

Block = dict[str, np.ndarray]
Result = TypeVar("Result")

STATUSES = np.array([status.name for status in sorted(Status)])
CRITERIA: dict[str, Criterion] = {name: name for name in ("evidence", "reconstruction", "gap")}


def codes(
    model: Autoencoder,
    x: Num[Tensor, "N *X"],
    batch_size: int = 1000,
    *,
    scored: bool = True,
    fabric: "lightning_fabric.Fabric | None" = None,
    seed: int = 0,
) -> Iterator[Block]:
    """Yields one code per observation: z (B, *Z), k (B,), log_joint (B,), log_q (B,) and status (B,) of each batch.

    log_joint and log_q at the code are in nats; k, log_q and status are present only if the engine returns them.

    Args:
        model: in evaluation mode.
        x: observations.
        batch_size: B.
        scored: False for z and k alone.
        fabric: shares the batches among its processes (``gae.training.launch``), each of which yields all of them; the
            model is on its device.
        seed: of the random draws of each batch, with ``fabric``; without it they are those of torch's generator.
    """
    return _over(x, batch_size, partial(_codes, model, scored=scored), fabric, seed)


@torch.no_grad()
def _codes(model: Autoencoder, x: Tensor, scored: bool) -> Block:
    encoding = model.encode(x)
    z, k, solve = encoding.point, encoding.component, encoding.solve
    columns: dict[str, Tensor | None] = {"k": k, "z": z}
    if scored:
        at = None if k is None else k.unsqueeze(0)
        columns["log_joint"] = model.likelihood.log_joint(x, z.unsqueeze(0), at)[0]
        if encoding.q is not None and k is None:
            columns["log_q"] = encoding.q.log_prob(z).reshape(-1, len(x))[0]
    block = {name: value.cpu().numpy() for name, value in columns.items() if value is not None}
    if scored and solve is not None:
        block["status"] = STATUSES[solve.status[encoding.best, torch.arange(len(x), device=x.device)].cpu().numpy()]
    return block


def reconstructions(
    model: Autoencoder,
    x: Num[Tensor, "N *X"],
    batch_size: int = 1000,
    *,
    fabric: "lightning_fabric.Fabric | None" = None,
    seed: int = 0,
) -> Iterator[Block]:
    """Yields the reconstruction x (B, *X) of each batch: the decoder's mean (for classes, the mode) at the code.

    ``fabric`` and ``seed`` are those of ``codes``.
    """
    return _over(x, batch_size, partial(_reconstruction, model), fabric, seed)


@torch.no_grad()
def _reconstruction(model: Autoencoder, x: Tensor) -> Block:
    return {"x": model.reconstruct(x).cpu().numpy()}


def _over(
    x: Tensor, batch_size: int, work: Callable[[Tensor], Block], fabric: "lightning_fabric.Fabric | None", seed: int
) -> Iterator[Block]:
    batches = x.split(batch_size)
    return map(work, batches) if fabric is None else over_blocks(fabric, batches, work, seed)


def scores(
    model: Autoencoder,
    x: Num[Tensor, "N *X"],
    by: Sequence[str] = ("evidence",),
    samples: int = 500,
    batch_size: int = 100,
    *,
    fabric: "lightning_fabric.Fabric | None" = None,
    seed: int = 0,
) -> Block:
    """Scores of each observation, in nats.

    ``"evidence"`` gives log_p (N,), its standard_error (N,), the method (N,), and tight (N,), which is False where the
    value is only a lower bound of log p(x) in expectation (``gae.log_evidence``). The others give the anomaly score of
    that name (``gae.anomaly_scores``).

    Args:
        model: in evaluation mode.
        x: observations.
        by: names of scores.
        samples: importance samples per observation, where log p(x) is not known exactly.
        batch_size: number of observations at a time.
        fabric: shares the batches among its processes, each of which returns all scores; the model is on its device.
        seed: of the random draws of each batch, with ``fabric``; without it they are those of torch's generator.

    Raises:
        ValueError: for an unknown score, or one that the model does not have, such as log p(x) under a flat prior.

    >>> from gae.systems import ppca
    >>> scores(ppca((5,), latent=2), torch.randn(3, 5))["method"]
    array(['exact', 'exact', 'exact'], dtype='<U10')
    """
    for name in by:
        if name not in CRITERIA:
            raise ValueError(f"Unknown score {name!r}. Valid scores: {', '.join(CRITERIA)}.")
    columns: dict[str, Any] = {}
    over = in_turn if fabric is None else _Shared(fabric, seed)
    x = x if fabric is None else x.to(fabric.device)
    for name in dict.fromkeys(by):
        if name == "evidence":
            evidence = log_evidence(model, x, samples, batch_size, over=over)
            columns |= {"log_p": evidence.log_p, "standard_error": evidence.standard_error}
            columns |= {"method": np.array(evidence.method, dtype="<U10"), "tight": evidence.tight}
        else:
            work = partial(anomaly_scores, model, by=CRITERIA[name], batch_size=batch_size)
            columns[name] = torch.cat(over(x.split(batch_size), work, name))
    return {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in columns.items()}


class _Shared:
    """Work on blocks that the processes of a group share; each pass over the data has a seed of its own."""

    def __init__(self, fabric: "lightning_fabric.Fabric", seed: int):
        self.fabric, self.seeds = fabric, count(seed)

    def __call__(self, batches: Sequence[Tensor], work: Callable[[Tensor], Result], what: str) -> list[Result]:
        results = over_blocks(self.fabric, batches, work, next(self.seeds) % 2**32)
        return [next(results) for _ in counted(range(len(batches)), what)]
