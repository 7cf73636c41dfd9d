"""Metrics of an inference engine on held-out data."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.evidence import Evidence
from gae.evidence.base import is_exact, without_warning
from gae.evidence.usage import ACTIVE
from gae.inference import Encoding, Status
from gae.inference.laws import codes_from
from gae.likelihood import CodebookDistribution, FlatDistribution
from gae.likelihood.codebook import ENUMERABLE
from gae.objective import elbo

Entry = dict[str, Any]
NO_EVIDENCE = "under a flat prior log p(x) and its bounds do not exist"
TOO_MANY = f"log p(x) is a sum over all codes of the codebook, more than {ENUMERABLE}"
UNLABELLED = "the data have no labels"
NO_DENSITY = "a point code has no density q(z|x), so no ELBO"
SAMPLED_AT_ONCE = 250  # number of observations with many samples each in memory


@dataclass(frozen=True)
class EvaluationBudget:
    """Numbers of samples used to evaluate the metrics.

    Attributes:
        batch_size: number of observations encoded at once.
        importance_samples: number S of importance samples for log p(x).
        evidence_samples: number of test samples, from the first, for which log p(x) is estimated.
        elbo_samples: number of samples from q per observation for the ELBO.
        neighbour_samples: number of training samples, from the first, of the nearest-neighbour classifier.
    """

    batch_size: int = 1000
    importance_samples: int = 500
    evidence_samples: int = 1000
    elbo_samples: int = 32
    neighbour_samples: int = 10_000


@dataclass(frozen=True)
class PointEncodings:
    """Point encodings and reconstructions of N samples, with the cost of inference."""

    z: Float[Tensor, "N *Z"]
    mean: Num[Tensor, "N *X"]
    joint: Float[Tensor, " N"]  # log density at the code, nats
    evaluations: Float[Tensor, " N"]
    status: Counter[str]
    encodings: list[Encoding]  # of each batch
    seconds: list[float]  # encoding time of each batch

    @property
    def milliseconds(self) -> Entry:
        """Wall-clock time per code in milliseconds: median and range over batches."""
        each = sorted(1000 * spent / part.z.shape[1] for spent, part in zip(self.seconds, self.encodings, strict=True))
        return {"mean": statistics.median(each), "se": None, "range": [each[0], each[-1]]}

    def chunks(self, x: Num[Tensor, "N *X"], limit: int | None = None) -> Iterator[tuple[Tensor, Encoding]]:
        """Chunks of the first ``limit`` observations and their encodings, small enough to sample from each."""
        first = 0
        for part in self.encodings:
            batch = x[first : min(first + part.z.shape[1], len(x) if limit is None else limit)]
            for start in range(0, len(batch), SAMPLED_AT_ONCE):
                rows = batch[start : start + SAMPLED_AT_ONCE]
                yield rows, part.rows(start, start + len(rows))
            first += part.z.shape[1]


def mean_and_error(values: Float[Tensor, " N"]) -> Entry:
    """The mean over samples and its standard error.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    {'mean': 2.0, 'se': 1.0}
    """
    values = values.cpu().double()
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    mean = float(values.mean())
    if not math.isfinite(mean):
        return missing(f"{int((~values.isfinite()).sum())} of {len(values)} values are not finite")
    return {"mean": mean, "se": error}


def missing(reason: str) -> Entry:
    """Entry of a metric that does not exist, with the reason."""
    return {"mean": None, "se": None, "reason": reason}


def evaluate(
    model: Autoencoder, data: Dataset, effort: EvaluationBudget, seed: int, points: PointEncodings | None = None
) -> Entry:
    """All metrics of a model on the test set, as mean and standard error per sample.

    ``joint``, ``elbo`` and ``log_p`` are in nats, ``squared_error`` is per element of x, ``accuracy`` is that of 5
    nearest neighbours on the codes, ``milliseconds`` and ``evaluations`` (of the decoder) are per sample. A metric that
    does not exist is null with a reason. ``active`` counts the code dimensions whose variance over the test set is
    above 0.01 (active units, Burda et al. 2016); dimensions that the decoder ignores are not active. ``perplexity`` is
    given for codes of codebook vectors alone (``codebook_perplexity``). torch's global random state is unchanged. The
    test set is encoded once, or not at all if its ``points`` are given.
    """
    points = points or held_out(model, data, effort, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        bounds: Entry = {
            "elbo": mean_elbo(model, data.test, points, effort),
            "log_p": mean_log_evidence(model, data.test, points, effort),
        }
    return {**bounds, **point_metrics(model, data, effort, points)}


@torch.no_grad()
def point_metrics(model: Autoencoder, data: Dataset, effort: EvaluationBudget, points: PointEncodings) -> Entry:
    """The metrics of ``evaluate`` that need no density: those of the test set's codes as points."""
    spread = (points.z - points.z.mean(0)).square().mean(0)
    with torch.random.fork_rng(devices=[]):
        values: Entry = {
            "joint": mean_and_error(points.joint),
            "squared_error": mean_and_error(squared_errors(points.mean, data.test)),
            "accuracy": accuracy(model, data, points, effort),
            "milliseconds": points.milliseconds,
            "evaluations": mean_and_error(points.evaluations),
            "active": int((spread > ACTIVE).sum()),
            "status": dict(points.status),
        }
    if isinstance(model.likelihood.prior, CodebookDistribution):
        values["perplexity"] = codebook_perplexity(model.likelihood.prior, points.z)
    return values


def squared_errors(restored: Float[Tensor, "N *X"], x: Num[Tensor, "N *X"]) -> Float[Tensor, " M"]:
    """The mean squared error of each observation over its observed elements; rows without any are left out.

    >>> squared_errors(torch.zeros(2, 2), torch.tensor([[3.0, torch.nan], [torch.nan, torch.nan]]))
    tensor([9.])
    """
    square = (restored - x).square().flatten(1)
    hidden = square.isnan() & x.flatten(1).isnan()
    if not bool(hidden.any()):
        return square.mean(1)
    number = (~hidden).sum(1)
    return (square.masked_fill(hidden, 0).sum(1) / number)[number > 0]


def codebook_perplexity(prior: CodebookDistribution, z: Float[Tensor, "N P E"]) -> float:
    """Perplexity of the use of a codebook: exp of the entropy of its K vectors' frequencies, from 1 to K.

    Frequencies are those over all N codes and all P positions.

    >>> prior = CodebookDistribution(torch.tensor([[0.0], [1.0], [2.0]]), positions=2)
    >>> codebook_perplexity(prior, torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]]))
    2.0
    """
    share = prior.nearest(z).flatten().bincount(minlength=len(prior.vectors)).cpu().double() / z.shape[:2].numel()
    return math.exp(-float(torch.xlogy(share, share).sum()))


def held_out(model: Autoencoder, data: Dataset, effort: EvaluationBudget, seed: int) -> PointEncodings:
    """Codes of the test set, without gradients. torch's global random state is unchanged."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return encode(model, data.test, effort)


def encode(model: Autoencoder, x: Num[Tensor, "N *X"], effort: EvaluationBudget) -> PointEncodings:
    """Encodes x in batches."""
    parts = [_encode(model, batch) for batch in x.split(effort.batch_size)]
    columns = zip(*((part.z, part.mean, part.joint, part.evaluations) for part in parts), strict=True)
    z, mean, joint, evaluations = (torch.cat(column) for column in columns)
    status = sum((part.status for part in parts), Counter[str]())
    encodings, seconds = [part.encodings[0] for part in parts], [part.seconds[0] for part in parts]
    return PointEncodings(z, mean, joint, evaluations, status, encodings, seconds)


def _encode(model: Autoencoder, x: Tensor) -> PointEncodings:
    start = time.perf_counter()
    encoding = model.encode(x)
    seconds = time.perf_counter() - start
    z, k, solve = encoding.point, encoding.component, encoding.solve
    mean = model.likelihood.point(model.decode(z, k))
    joint = model.likelihood.log_joint(x, z.unsqueeze(0), None if k is None else k.unsqueeze(0))[0]
    evaluations = x.new_zeros(len(x)) if solve is None else solve.evaluations.sum(0).to(x.dtype)
    statuses = [] if solve is None else solve.status.flatten().tolist()
    status = Counter(Status(status).name for status in statuses)
    return PointEncodings(z, mean, joint, evaluations, status, [encoding], [seconds])


def mean_elbo(model: Autoencoder, x: Num[Tensor, "N *X"], points: PointEncodings, effort: EvaluationBudget) -> Entry:
    """The ELBO of the engine's q(z|x), with fresh samples; missing for a point code and under a flat prior."""
    if isinstance(model.likelihood.prior, FlatDistribution):
        return missing(NO_EVIDENCE)
    bounds = [_elbo(model, rows, encoding, effort.elbo_samples) for rows, encoding in points.chunks(x)]
    values = [value for value in bounds if value is not None]
    return mean_and_error(torch.cat(values)) if values else missing(NO_DENSITY)


def _elbo(model: Autoencoder, x: Tensor, encoding: Encoding, samples: int) -> Tensor | None:
    q = encoding.q
    if q is None:
        return None
    z = codes_from(q, samples)
    log_q = q.log_prob(z).reshape(-1, len(x))
    z = z.reshape(-1, len(x), *model.likelihood.latent_shape)
    return elbo(Encoding(z, None, model.likelihood.log_joint(x, z), log_q, q, encoding.prior, encoding.engine))


def mean_log_evidence(
    model: Autoencoder, x: Num[Tensor, "N *X"], points: PointEncodings, effort: EvaluationBudget
) -> Entry:
    """The mean log p(x) of the first x: exact if tractable, otherwise by importance sampling.

    ``sampling_se`` and ``ess`` are means over x, of the standard error of one sample's estimate and of the effective
    sample size of its importance weights; ``unreliable`` is the fraction of x for which both are unreliable. Missing
    under a flat prior, and for too many codes of a codebook.
    """
    if isinstance(model.likelihood.prior, FlatDistribution):
        return missing(NO_EVIDENCE)
    prior = model.likelihood.prior
    if isinstance(prior, CodebookDistribution) and not prior.is_enumerable:
        return missing(TOO_MANY)
    with without_warning():  # the entry reports the fraction of unreliable estimates
        chunks = points.chunks(x, min(effort.evidence_samples, len(x)))
        evidence = Evidence.join(
            [model.log_evidence(rows, effort.importance_samples, encoding) for rows, encoding in chunks]
        )
    return {
        **mean_and_error(evidence.log_p),
        "method": "exact" if is_exact(model.likelihood) else "importance sampling",
        "sampling_se": float(evidence.standard_error.mean()),
        "ess": None if evidence.ess is None else float(evidence.ess.mean()),
        "unreliable": float(evidence.unreliable.double().mean()),
        "samples": len(evidence.log_p),
    }


def accuracy(model: Autoencoder, data: Dataset, points: PointEncodings, effort: EvaluationBudget) -> Entry:
    """Accuracy of 5-nearest-neighbour classification of test codes by training codes, with binomial standard error.

    Codes of a mixture, whose charts share no axes, and codes without elements are compared by their decoded means.
    """
    if unlabelled(data):
        return missing(UNLABELLED)
    train = encode(model, data.train[: effort.neighbour_samples], effort)
    by_mean = model.likelihood.components > 1 or not model.likelihood.latent_shape.numel()
    codes, queries = (p.mean if by_mean else p.z for p in (train, points))
    return _five_nearest(codes, queries, data)


def nearest_neighbours(data: Dataset, effort: EvaluationBudget) -> Entry:
    """The metrics of ``evaluate`` that the training samples themselves have, without a model.

    ``squared_error`` is that of the nearest training sample as the reconstruction, and ``accuracy`` that of 5 nearest
    neighbours on x itself. The others are missing.
    """
    train = data.train[: effort.neighbour_samples]
    nearest = torch.cat([torch.cdist(x.flatten(1), train.flatten(1)).argmin(1) for x in data.test.split(1000)])
    return {
        **{name: missing("a training sample has no code") for name in ("joint", "milliseconds", "evaluations")},
        "squared_error": mean_and_error(squared_errors(train[nearest], data.test)),
        "accuracy": missing(UNLABELLED) if unlabelled(data) else _five_nearest(train, data.test, data),
    }


def unlabelled(data: Dataset) -> bool:
    """Whether training or test samples have no labels."""
    return data.train_labels is None or data.test_labels is None


def _five_nearest(codes: Float[Tensor, "M ..."], queries: Float[Tensor, "N ..."], data: Dataset) -> Entry:
    from sklearn.neighbors import KNeighborsClassifier

    assert data.train_labels is not None and data.test_labels is not None
    classifier = KNeighborsClassifier(5).fit(codes.flatten(1).numpy(), data.train_labels[: len(codes)].numpy())
    return proportion(float(classifier.score(queries.flatten(1).numpy(), data.test_labels.numpy())), len(queries))


def proportion(rate: float, n: int) -> Entry:
    """A proportion of n samples, and its binomial standard error."""
    return {"mean": rate, "se": math.sqrt(rate * (1 - rate) / n)}
