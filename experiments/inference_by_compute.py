"""Claim: the compute at which inference for each image overtakes an encoder, on one frozen decoder and in one family.

For each seed, the decoder of ``encoder_capacity`` is frozen, and its encoders of middle size, with a diagonal and with
a full covariance, are fitted to it. On the first test images every engine gives a normal density q(z|x), once of each
family, and its figure is always the ELBO of that density by fresh draws, in nats per image. A point is never scored.

The reference q* of a family is for each image the better of two local optima, by L-BFGS from the Laplace approximation
at the mode and from the encoder's density.

- ``encoder``: the encoder's density.
- ``ascent``: that density, or the Laplace approximation at the mode (found by L-BFGS from zeros), after t steps on the
  ELBO of its family, under fixed noise of matched moments.
- ``laplace``: the Laplace approximation at the code after t steps on the joint density, from zeros or from the
  encoder's mean (t = 0: at the start itself). Its precision is the Hessian, or for the diagonal family its diagonal,
  with eigenvalues of at least the prior's precision, since it need not be positive definite away from a mode.
- ``chain``: the states in the second half of a chain, by adjusted Langevin dynamics or HMC, from zeros or from a draw
  of the encoder: one chain, since each would pay for its own way to the posterior. q is the member of the family
  nearest in KL(q, p) to the normal p of their mean and covariance: p itself, or the diagonal of its precision. The
  covariance is regularised as in Stan's warm-up.

*Evaluations* are those of the joint density of one code with its gradient, per image: as the engine's report counts
them, with the draws of an objective, the moves of a trajectory and all chains, and with one per element of a code for
each curvature matrix (of the Laplace approximation, and of every step of Gauss-Newton). Ascents from the Laplace
approximation include what that took. An encoder's pass, which evaluates no decoder, counts as none. *Seconds* are those
of all images in one batch, divided by their number. They were taken once, with other processes running: they are rough.

*Rates* of all step rules are chosen by the ELBO on validation images, for each start, family and number of steps, from
a grid of five; figures whose rate is an edge of its grid are marked. L-BFGS (for densities also under the curvature of
each image, with the evaluations that this takes) and Gauss-Newton have no rate; trajectories of HMC have a fixed number
of moves. For a budget of evaluations, the number of steps within it is chosen on validation images too. Learned steps
are not among the rules.

    python -m experiments.inference_by_compute [PART ...] [--seeds 0] [--data fashion-mnist]

computes some parts of the grid; the results are written once all are there. ``decoder`` and ``encoder`` come first:
the other parts need their networks, and can then run in several processes. The decoder, with log p(x) and the use of
its code, is a cell of ``encoder_capacity``, computed if it is missing. ``--smoke`` takes a tiny grid of the
bundled digits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from experiments import encoder_capacity as capacity
from experiments.common import write
from experiments.study import (
    CONVERGED,
    TIGHT,
    Images,
    Study,
    best_rate,
    double,
    markdown,
    optimum_entry,
    options,
    over_images,
    shown,
)
from gae.analysis.estimates import NEGLIGIBLE, Estimate, difference, estimate
from gae.analysis.gap import Bound
from gae.analysis.inference_gap import FAMILIES as MEMBERS
from gae.analysis.inference_gap import best_normal, lower_bound, one_row
from gae.inference import (
    HMC,
    LBFGS,
    Adam,
    Ascent,
    Code,
    Delta,
    Detach,
    Family,
    GaussNewton,
    GradientAscent,
    Inference,
    Langevin,
    Laplace,
    Momentum,
    Step,
)
from gae.inference.ascent.problem import expand_rows, finite
from gae.inference.ascent.solver import Iterate, Solver
from gae.inference.modes import mode_search
from gae.inference.starts import Given
from gae.likelihood import Likelihood
from gae.systems.parts import Encoder

CLAIM = "inference_by_compute"
FAMILIES = {family: capacity.FAMILIES[family] for family in ("diagonal", "full")}
ENCODER, ASCENT, LAPLACE, CHAIN = "encoder", "ascent", "laplace", "chain"
PARTS = ("decoder", ENCODER, ASCENT, LAPLACE, CHAIN)
STARTS = {ASCENT: ("encoder", "Laplace"), LAPLACE: ("zeros", "encoder"), CHAIN: ("zeros", "encoder")}
TITLES = {ASCENT: "ascent in the family", LAPLACE: "Laplace at the code", CHAIN: "moments of a chain"}
RULES: dict[str, Callable[..., Step]] = {
    "gradient": GradientAscent,
    "momentum": Momentum,
    "Adam": Adam,
    "L-BFGS": LBFGS,
    "L-BFGS, curvature": partial(LBFGS, curvature="gauss-newton"),
    "Gauss-Newton": GaussNewton,
    "Langevin": partial(Langevin, adjusted=True),
    "HMC": HMC,
}
SHADES = ("0.5", "tab:cyan", "tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "k")
COLOURS = dict(zip(RULES, SHADES, strict=True))
PSEUDO, SCALE = 5.0, 1e-3  # number of states that say that the covariance is SCALE · I (Stan's warm-up)
FLOOR = 1.0  # least eigenvalue of a Laplace approximation's precision, in units of the prior's
APART = 0.1  # nats by which one local optimum is another than a second
OPTIMUM_NOISE = 4  # draws of an objective for each element of a code in the search for q*
LEAST, MOST = NEGLIGIBLE, 200.0  # nats: the smallest and the largest gap that is drawn
PLACES = 4  # decimals of a bound that are kept

Grids = dict[str, dict[str, "Grid"]]


@dataclass(frozen=True)
class Grid:
    """Numbers of steps of a rule, and the rates of which one is chosen for each; none for a rule without a rate."""

    steps: tuple[int, ...]
    rates: tuple[float, ...] = ()


def grids() -> Grids:
    """The grid of each rule, by part."""
    on_codes, on_densities = (0, *(2**i for i in range(9))), tuple(2**i for i in range(7))
    fine, coarse = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    return {
        ASCENT: {
            "gradient": Grid(on_densities, fine),
            "momentum": Grid(on_densities, coarse),
            "Adam": Grid(on_densities, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
            "L-BFGS": Grid(on_densities),
            "L-BFGS, curvature": Grid(on_densities),
        },
        LAPLACE: {
            "gradient": Grid(on_codes, fine),
            "momentum": Grid(on_codes, coarse),
            "Adam": Grid(on_codes, (3e-2, 1e-1, 3e-1, 1.0, 3.0)),
            "L-BFGS": Grid(on_codes),
            "Gauss-Newton": Grid(on_codes[:6]),
        },
        CHAIN: {
            "Langevin": Grid(tuple(10 * 2**i for i in range(9)), fine),
            "HMC": Grid(tuple(4 * 2**i for i in range(8)), (2.5e-2, 5e-2, 1e-1, 2e-1, 4e-1)),
        },
    }


@dataclass(frozen=True)
class Configuration:
    """Everything that determines the numbers, with the data.

    Attributes:
        networks: of the decoders and encoders.
        validation: first validation images, on which rates and numbers of steps are chosen.
        draws, tuning_draws: of each bound, on test and on validation images.
        noise: draws of an objective for each element of a code.
        chains: of each image; the states of several are pooled.
        leapfrog: moves of a trajectory.
        budgets: most evaluations per image of each column of the tables.
    """

    networks: capacity.Configuration = field(default_factory=capacity.Configuration)
    grids: Grids = field(default_factory=grids)
    validation: int = 20
    draws: int = 200
    tuning_draws: int = 100
    noise: int = 2
    chains: int = 1
    leapfrog: int = 5
    budgets: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.networks.seeds


def smoke() -> Configuration:
    """A tiny grid of the bundled digits."""
    short = {
        part: {rule: Grid(grid.steps[:4], grid.rates[1:4]) for rule, grid in rules.items()}
        for part, rules in grids().items()
    }
    return Configuration(capacity.SMOKE, short, validation=6, draws=50, tuning_draws=20, budgets=(10, 30, 100))


@dataclass(frozen=True)
class Engine:
    """What gives a density: a part, where it starts, and the step rule."""

    part: str
    start: str
    rule: str

    def __str__(self) -> str:
        return f"{self.part} {self.rule} from {self.start}"


def engines(c: Configuration) -> Iterator[Engine]:
    """All engines but the encoder alone."""
    for part, rules in c.grids.items():
        yield from (Engine(part, start, rule) for start in STARTS[part] for rule in rules)


def encoder_name(family: str, seed: int) -> str:
    return f"{ENCODER} {family} seed {seed}"


def cell_name(engine: Engine, family: str, seed: int) -> str:
    return f"{engine} {family} seed {seed}"


def names(c: Configuration, seed: int) -> Iterator[str]:
    """The names of a seed's cells."""
    yield capacity.decoder_name(seed)
    for family in FAMILIES:
        yield encoder_name(family, seed)
        yield from (cell_name(engine, family, seed) for engine in engines(c))


@dataclass(frozen=True)
class Mark:
    """Where a solve is after some steps: point (S, B, *U), evaluations per image, and seconds for all images."""

    point: Tensor
    evaluations: float
    seconds: float


class Record(Detach):
    """A solve without a graph that records where it is after each of some increasing numbers of steps."""

    def __init__(self, steps: Sequence[int]):
        super().__init__()
        self.steps = tuple(steps)
        self.marks: dict[int, Mark] = {}

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        at, begin, seconds = start.detach(), 0, 0.0
        for end in self.steps:
            began = perf_counter()
            at = solver.run(at, begin, end, False)
            seconds += perf_counter() - began
            u, begin = solver.point(at), end
            known = expand_rows(finite(u, torch.zeros_like(at["value"])), u)
            spent = float(at["evaluations"].sum(0).double().mean())
            self.marks[end] = Mark(torch.where(known, u, at["best"]), spent, seconds)
        return at


@dataclass(frozen=True)
class Stage:
    """The density (B,) of an engine after some steps, with evaluations and seconds per image."""

    steps: int
    q: Distribution
    evaluations: float
    seconds: float


@dataclass(frozen=True)
class Start:
    """Where an engine starts, with the evaluations and seconds per image that it took."""

    code: Code
    evaluations: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Bench:
    """A frozen decoder, images (B, *X), and the encoder of one family fitted to the decoder, in double precision."""

    decoder: Likelihood
    x: Tensor
    encoder: Encoder
    family: str

    @property
    def width(self) -> int:
        return self.decoder.latent_shape.numel()

    @torch.no_grad()
    def encoded(self) -> Stage:
        """The encoder's density."""
        began = perf_counter()
        q = self.encoder.density(self.x)
        return Stage(0, q, 0.0, (perf_counter() - began) / len(self.x))

    def start(self, engine: Engine, c: Configuration) -> Start:
        """The start of an engine; a chain starts ``c.chains`` times."""
        if engine.start == "Laplace":
            began = perf_counter()
            mode = self.laplace(mode_search())
            assert mode.solve is not None
            spent = float(mode.solve.evaluations.double().mean())
            return Start(mode, spent, (perf_counter() - began) / len(self.x))
        copies = c.chains if engine.part == CHAIN else 1
        if engine.start == "zeros":
            return Start(Code(self.x.new_zeros(copies, len(self.x), self.width)))
        encoded = self.encoded()
        code = Given.density(encoded.q).code if copies == 1 else Code(encoded.q.sample(torch.Size([copies])))
        return Start(code, encoded.evaluations, encoded.seconds)

    def laplace(self, inner: Inference) -> Code:
        """The Laplace approximation of the family around the codes of another engine."""
        covariance: Literal["full", "diagonal"] = "full" if self.family == "full" else "diagonal"
        return Laplace(inner, covariance, "hessian", samples=None, floor=FLOOR).infer(self.decoder, self.x)

    @torch.no_grad()
    def curve(self, engine: Engine, c: Configuration, rate: float | None, steps: Sequence[int]) -> list[Stage]:
        """The densities of an engine after each of some increasing numbers of steps of one solve."""
        start = self.start(engine, c)
        record = Record(range(1, steps[-1] + 1) if engine.part == CHAIN else steps)
        member: Family = Delta()
        if engine.part == ASCENT:
            member = MEMBERS[FAMILIES[self.family]](c.noise * self.width, matched=True)
        rule = step_rule(engine.rule, rate, c)
        Ascent(Given(start.code), rule, steps[-1], family=member, adjoint=record).infer(self.decoder, self.x)
        stages = []
        for end in steps:
            mark, began = record.marks[end], perf_counter()
            curvatures = 0
            if engine.part == ASCENT:
                density = member.code(self.decoder, mark.point, member.draw(mark.point)).q
            elif engine.part == LAPLACE:
                density = self.laplace(Given(Code(mark.point))).q
                curvatures = 1
            else:
                chain = torch.stack([record.marks[t].point for t in range(end // 2 + 1, end + 1)])
                density = nearest_normal(chain.flatten(0, 1), self.family)
            assert density is not None
            curvatures += end if engine.rule == "Gauss-Newton" else 0
            spent = start.evaluations + mark.evaluations + curvatures * self.width
            seconds = start.seconds + (mark.seconds + perf_counter() - began) / len(self.x)
            stages.append(Stage(end, one_row(density), spent, seconds))
        return stages

    @torch.no_grad()
    def optimum(self, c: Configuration) -> tuple[Bound, Tensor]:
        """The better of two local optima q* of each image, and whether they differ in favour of the encoder's, (B,).

        They start from the Laplace approximation and from the encoder's density, and one is chosen by other draws than
        those of its bound.
        """
        laplace = self.laplace(mode_search()).q
        assert laplace is not None
        networks = c.networks
        solves = [
            best_normal(
                FAMILIES[self.family], self.decoder, self.x, start, OPTIMUM_NOISE * self.width, networks.optimum_steps
            )
            for start in (one_row(laplace), self.encoded().q)
        ]
        first, second = (lower_bound(self.decoder, self.x, q, networks.draws) for q, _ in solves)
        ahead, error = second.value - first.value, torch.hypot(first.standard_error, second.standard_error)
        chosen = ahead > 0
        first, second = (
            replace(lower_bound(self.decoder, self.x, q, networks.draws), status=status) for q, status in solves
        )
        assert first.status is not None and second.status is not None
        best = Bound(
            torch.where(chosen, second.value, first.value),
            torch.where(chosen, second.standard_error, first.standard_error),
            None,
            torch.where(chosen, second.status, first.status),
        )
        return best, ahead > APART + 3 * error

    def bound(self, q: Distribution, draws: int) -> Tensor:
        """The ELBO of each image, (B,) in nats."""
        return lower_bound(self.decoder, self.x, q, draws).value


def step_rule(name: str, rate: float | None, c: Configuration) -> Step:
    """A step rule by its name, with its rate if it has one."""
    options = {"leapfrog": c.leapfrog} if name == "HMC" else {}
    return RULES[name](**options) if rate is None else RULES[name](rate, **options)


def nearest_normal(states: Tensor, family: str) -> Distribution:
    """The member of a family nearest in KL(q, p) to the normal p of the moments of states (N, B, Z), N at least 2."""
    number, _, width = states.shape
    if number < 2:
        raise ValueError(f"The moments of a chain need at least two states, got {number}.")
    loc = states.mean(0)
    apart = states - loc
    covariance = torch.einsum("nbi,nbj->bij", apart, apart) / (number - 1)
    identity = torch.eye(width, dtype=states.dtype, device=states.device)
    covariance = (number * covariance + PSEUDO * SCALE * identity) / (number + PSEUDO)
    if family == "full":
        return MultivariateNormal(loc, covariance, validate_args=False)
    precision = torch.linalg.inv(covariance).diagonal(dim1=-2, dim2=-1)
    return Independent(Normal(loc, precision.rsqrt(), validate_args=False), 1, validate_args=False)


class Compute:
    """The cells of the study."""

    def __init__(self, study: Study, networks: capacity.Capacity, c: Configuration):
        self.study, self.networks, self.c = study, networks, c
        self.data: Images = networks.data

    def run(self, part: str, seed: int) -> None:
        """Computes the cells of a part, and keeps them."""
        cells: dict[str, Callable[[], dict[str, Any]]] = {}
        if part == "decoder":
            cells[capacity.decoder_name(seed)] = partial(self.decoder, seed)
        for family in FAMILIES if part != "decoder" else ():
            if part == ENCODER:
                cells[encoder_name(family, seed)] = partial(self.encoder, family, seed)
            for engine in engines(self.c):
                if engine.part == part:
                    cells[cell_name(engine, family, seed)] = partial(self.engine, engine, family, seed)
        for name, compute in cells.items():
            self.study.cell(name, seed, compute)
            self.study.keep(name)

    def decoder(self, seed: int) -> dict[str, Any]:
        """A cell: choice, references and use of the frozen decoder, as ``encoder_capacity`` has them."""
        self.networks.decoder(seed)
        cell = self.networks.study.known(capacity.decoder_name(seed))
        assert cell is not None
        return {name: cell[name] for name in ("choice", "without code", "test")}

    def fitted(self, family: str, seed: int) -> tuple[Likelihood, Encoder, dict[str, Any]]:
        """The frozen decoder, the encoder of a family fitted to it, and how its rate was chosen."""
        model, choice = self.networks.fitted(family, capacity.Size(*self.c.networks.middle), seed)
        return model.likelihood, capacity.encoder_in(model), choice

    def benches(self, family: str, seed: int) -> tuple[Bench, Bench]:
        """The validation images on which rates are chosen, and the test images, with decoder and encoder."""
        decoder, encoder, _ = self.fitted(family, seed)
        held, test = self.data.validation[: self.c.validation], self.data.test[: self.c.networks.measured]
        exact, precise = double(decoder), double(encoder)
        return Bench(exact, held.double(), precise, family), Bench(exact, test.double(), precise, family)

    def encoder(self, family: str, seed: int) -> dict[str, Any]:
        """A cell: the encoder alone, and q* of its family."""
        decoder, encoder, choice = self.fitted(family, seed)
        _, test = self.benches(family, seed)
        test.encoded()  # the first call is slower
        stage = test.encoded()
        optimum, other = test.optimum(self.c)
        return {
            "choice": choice,
            "active": self.networks.active(encoder, decoder),
            "values": rounded(test.bound(stage.q, self.c.draws)),
            "seconds per image": stage.seconds,
            "optimum": optimum_entry(optimum) | {"other": float(other.double().mean())},
        }

    def engine(self, engine: Engine, family: str, seed: int) -> dict[str, Any]:
        """A cell: bounds after each number of steps, at the rate that is best there on validation images."""
        c, grid = self.c, self.c.grids[engine.part][engine.rule]
        held, test = self.benches(family, seed)
        scores: dict[float | None, list[float | None]] = {}
        for rate in grid.rates or (None,):
            stages = held.curve(engine, c, rate, grid.steps)
            scores[rate] = [score(held.bound(stage.q, c.tuning_draws)) for stage in stages]
        chosen = {steps: choice(scores, i, is_start=not steps) for i, steps in enumerate(grid.steps)}
        points = []
        for rate in scores:
            mine = [steps for steps in grid.steps if chosen[steps]["rate"] == rate]
            for stage in test.curve(engine, c, rate, mine) if mine else ():
                values = rounded(test.bound(stage.q, c.draws))
                cost = {"evaluations": stage.evaluations, "seconds": stage.seconds}
                points.append({"steps": stage.steps, **chosen[stage.steps], **cost, "values": values})
        return {"points": sorted(points, key=lambda point: int(point["steps"]))}


def score(values: Tensor) -> float | None:
    """The mean, or None if it is not finite."""
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None


def choice(scores: dict[float | None, list[float | None]], i: int, is_start: bool = False) -> dict[str, Any]:
    """The rate with the highest validation score after the i-th number of steps; any for a start, without steps."""
    if None in scores or is_start:
        rate = next(iter(scores))
        return {"rate": rate, "edge": False, "validation": scores[rate][i]}
    best = best_rate({rate: values[i] for rate, values in scores.items() if rate is not None})
    return {"rate": best["rate"], "edge": best["edge"], "validation": scores[best["rate"]][i]}


def rounded(values: Tensor) -> list[float]:
    return [round(value, PLACES) for value in values.tolist()]


@dataclass(frozen=True)
class Row:
    """An engine in a family after some steps, over trainings.

    Attributes:
        gap: L[q*] of the family less the engine's bound.
        gain: the engine's bound less the encoder's of the family.
        edges: number of trainings whose rate is an edge of its grid.
    """

    steps: list[int]
    rates: list[float | None]
    edges: int
    evaluations: float
    seconds: float
    gap: Estimate
    gain: Estimate

    @classmethod
    def of(cls, points: list[dict[str, Any]], best: list[list[float]], encoder: list[list[float]]) -> "Row":
        """The row of one point for each training, with the bounds of q* and of the encoder."""
        values = [point["values"] for point in points]
        return cls(
            [point["steps"] for point in points],
            [point["rate"] for point in points],
            sum(point["edge"] for point in points),
            mean([point["evaluations"] for point in points]),
            mean([point["seconds"] for point in points]),
            difference(best, values),
            difference(values, encoder),
        )


@dataclass(frozen=True)
class Line:
    """An engine in a family: a row for each number of steps, and one for each budget of evaluations that allows any."""

    engine: Engine
    family: str
    rows: list[Row]
    within: dict[int, Row]

    @property
    def overtaking(self) -> Row | None:
        """The first row that is above the encoder, as far as these trainings resolve it."""
        return next((row for row in self.rows if row.gain.mean > 0 and row.gain.significant), None)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def best_within(points: list[dict[str, Any]], budget: float) -> dict[str, Any] | None:
    """The point of at most so many evaluations that is best on validation images; None if there is none."""
    allowed = [point for point in points if point["evaluations"] <= budget]
    return max(allowed, key=lambda point: float(point["validation"]), default=None)


def optimum(cells: dict[str, Any], c: Configuration, family: str) -> list[dict[str, Any]]:
    """L[q*] of a family, with the share of converged solves, by training."""
    return [cells[encoder_name(family, seed)]["optimum"] for seed in c.seeds]


def line(cells: dict[str, Any], c: Configuration, engine: Engine, family: str) -> Line:
    """The figures of an engine; errors are over trainings of decoder and encoder."""
    curves = [cells[cell_name(engine, family, seed)]["points"] for seed in c.seeds]
    best = [entry["values"] for entry in optimum(cells, c, family)]
    encoder = [cells[encoder_name(family, seed)]["values"] for seed in c.seeds]
    within = {}
    for budget in c.budgets:
        chosen = [best_within(points, budget) for points in curves]
        known = [point for point in chosen if point is not None]
        if len(known) == len(c.seeds):
            within[budget] = Row.of(known, best, encoder)
    rows = [Row.of(list(points), best, encoder) for points in zip(*curves, strict=True)]
    return Line(engine, family, rows, within)


def encoder_row(cells: dict[str, Any], c: Configuration, family: str) -> dict[str, Any]:
    """The figures of an encoder alone and of its family, over trainings."""
    mine = [cells[encoder_name(family, seed)] for seed in c.seeds]
    log_p = [cells[capacity.decoder_name(seed)]["test"]["log_p"] for seed in c.seeds]
    best, values = optimum(cells, c, family), [cell["values"] for cell in mine]
    reached = [entry["values"] for entry in best]
    tight = min(entry["tight"] for entry in log_p) >= TIGHT
    return {
        "bound": estimate(values),
        "optimum": estimate(reached),
        "gap": difference(reached, values),
        "approximation": difference([entry["values"] for entry in log_p], reached) if tight else None,
        "converged": min(entry["converged"] for entry in best),
        "other": mean([entry["other"] for entry in best]),
        "active": [cell["active"] for cell in mine],
        "rates": [cell["choice"]["rate"] for cell in mine],
        "edges": sum(cell["choice"]["edge"] for cell in mine),
        "seconds": mean([cell["seconds per image"] for cell in mine]),
    }


def encoder_table(encoders: dict[str, dict[str, Any]], c: Configuration) -> str:
    header = ["family", "L[q*]", "converged", "other optimum", "log p(x) − L[q*]", "L[q] of the encoder"]
    header += ["its gap L[q*] − L[q]", "s.e. over images", "active units", "rates", "ms per image"]
    rows = [
        [
            FAMILIES[family],
            at_least(entry) + shown(entry["optimum"]),
            f"{100 * entry['converged']:.0f} %",
            f"{100 * entry['other']:.0f} %",
            shown(entry["approximation"], 3),
            shown(entry["bound"]),
            at_least(entry) + shown(entry["gap"], 3),
            over_images(entry["gap"]),
            ", ".join(map(str, entry["active"])) + f" of {c.networks.latent}",
            ", ".join(f"{rate:g}" for rate in entry["rates"]) + edge_mark(entry["edges"]),
            f"{1000 * entry['seconds']:.3g}",
        ]
        for family, entry in encoders.items()
    ]
    return markdown(header, rows)


def at_least(entry: dict[str, Any]) -> str:
    return "≥ " if entry["converged"] < CONVERGED else ""


def edge_mark(edges: int) -> str:
    return " (edge)" if edges else ""


def budget_table(lines: list[Line], encoder: dict[str, Any], c: Configuration) -> str:
    """The gap of every engine of a family within each budget of evaluations."""
    header = ["density", "start", "rule", *(f"≤ {budget}" for budget in c.budgets)]
    least = {
        budget: min((line.within[budget].gap.mean for line in lines if budget in line.within), default=math.nan)
        for budget in c.budgets
    }

    def entry(row: Row | None, budget: int) -> str:
        if row is None:
            return "–"
        text = f"{shown(row.gap, 3)} [{over_images(row.gap)}]{edge_mark(row.edges)}"
        return f"**{text}**" if row.gap.mean == least[budget] else text

    alone = f"{shown(encoder['gap'], 3)} [{over_images(encoder['gap'])}]"
    rows = [["encoder alone", "–", "–", alone, *[""] * (len(c.budgets) - 1)]]
    for each in lines:
        entries = [entry(each.within.get(budget), budget) for budget in c.budgets]
        rows.append([TITLES[each.engine.part], each.engine.start, each.engine.rule, *entries])
    return markdown(header, rows)


def overtaking_table(lines: list[Line]) -> str:
    """For each engine of a family, the first number of steps after which it is ahead of the encoder."""
    header = ["density", "start", "rule", "steps", "evaluations", "ms per image", "gain on the encoder"]
    header += ["s.e. over images", "gap left"]
    rows = []
    for each in lines:
        name, first = [TITLES[each.engine.part], each.engine.start, each.engine.rule], each.overtaking
        if first is None:
            rows.append([*name, "never", *["–"] * 5])
            continue
        figures = [str(first.steps[0]), f"{first.evaluations:.0f}", f"{1000 * first.seconds:.3g}"]
        figures += [shown(first.gain, 3) + edge_mark(first.edges), over_images(first.gain), shown(first.gap, 3)]
        rows.append([*name, *figures])
    return markdown(header, rows)


def report(
    cells: dict[str, Any], c: Configuration, data: Images, lines: list[Line], encoders: dict[str, dict[str, Any]]
) -> str:
    """All tables as Markdown."""
    below = sum(row.gap.mean < 0 for each in lines for row in each.rows)
    total = sum(len(each.rows) for each in lines)
    parts = [
        f"# Inference by compute on one frozen decoder ({data.name})",
        f"{len(c.seeds)} trainings of decoder and encoders; errors after “±” are standard errors over trainings, those "
        f"in brackets over images. All figures are ELBOs of a normal density on the first {c.networks.measured} test "
        "images, in nats per image, and gaps are to L[q*] of the same family. “≥”: fewer than "
        f"{100 * CONVERGED:.0f} % of the solves of q* converged in some training, so a gap is at least this. A "
        f"negative gap says that an engine is ahead of the reference q*: {below} of {total} rows. “(edge)”: the rate "
        "of some training is an edge of its grid, so a rate beyond it might do better. Seconds were taken with other "
        "processes running, and are rough.",
        "## The frozen decoders\n\nHere L[q*] is that from the Laplace approximation alone, as in "
        "`encoder_capacity`.\n\n" + capacity.decoder_table(cells, c.networks),
        f"## The encoders fitted to them\n\nL[q*] is the better of two local optima; “other optimum”: share of images "
        f"on which the one from the encoder is ahead by more than {APART:g} nats and three standard errors. An encoder "
        "takes no decoder evaluation.\n\n" + encoder_table(encoders, c),
    ]
    for family, label in FAMILIES.items():
        mine = [each for each in lines if each.family == family]
        parts.append(
            f"## Gap within a budget of decoder evaluations per image: {label}\n\n"
            "Rates and numbers of steps are the best on validation images; the smallest gap of each budget is bold.\n\n"
            + budget_table(mine, encoders[family], c)
        )
        parts.append(
            f"## Where the encoder is overtaken: {label}\n\nThe first number of steps after which a t test over "
            "trainings resolves a gain at 5 % (of at least 0.01 nats), among those of the grid.\n\n"
            + overtaking_table(mine)
        )
    return "\n\n".join(parts)


def draw(lines: list[Line], encoders: dict[str, dict[str, Any]]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    columns = [(quantity, part) for quantity in ("evaluations", "seconds") for part in STARTS]
    layout: dict[str, Any] = {"constrained_layout": True, "sharey": True, "squeeze": False}
    figure, panels = pyplot.subplots(len(FAMILIES), len(columns), figsize=(21, 8), **layout)
    handles: dict[str, Any] = {}
    for row, family in zip(panels, FAMILIES, strict=True):
        for axes, (quantity, part) in zip(row, columns, strict=True):
            gap = drawn(encoders[family]["gap"])
            handles["encoder alone"] = axes.axhline(gap, color="tab:green", lw=1.5)
            if quantity == "seconds":
                axes.plot(encoders[family]["seconds"], gap, "*", color="tab:green", ms=12)
            for each in lines:
                if (each.family, each.engine.part) == (family, part):
                    start = "the encoder" if each.engine.start == "encoder" else "zeros or Laplace"
                    handles[f"{each.engine.rule}, from {start}"] = draw_line(axes, each, quantity)
            axes.set(xscale="log", yscale="log", ylim=(LEAST / 1.5, MOST), xlabel=f"{quantity} per image")
            axes.set_title(TITLES[part], fontsize=10)
            axes.xaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel(f"L[q*] − L[q], {FAMILIES[family]} (nats)")
    for half in (panels[:, : len(STARTS)], panels[:, len(STARTS) :]):
        limits = [axes.get_xlim() for axes in half.flat]
        for axes in half.flat:
            axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5)
    note = "Bars: standard errors over trainings. Open markers: a rate is an edge of its grid."
    figure.suptitle(f"{note} Gaps below {LEAST:g} nats, negative ones too, are drawn there.", fontsize=9)
    return figure


def draw_line(axes: Any, line: Line, quantity: str) -> Any:
    """The gap of an engine against a quantity; markers of rows whose rate is an edge are open."""
    rows = [row for row in line.rows if getattr(row, quantity) > 0]
    from_encoder, colour = line.engine.start == "encoder", COLOURS[line.engine.rule]
    places, gaps = [getattr(row, quantity) for row in rows], [drawn(row.gap) for row in rows]
    style: dict[str, Any] = {"marker": "o" if from_encoder else "s", "ms": 4, "color": colour}
    errors = [row.gap.error or 0.0 for row in rows]
    curve = axes.errorbar(places, gaps, errors, ls="-" if from_encoder else "--", lw=1, elinewidth=0.6, **style)
    edges = [i for i, row in enumerate(rows) if row.edges]
    axes.plot([places[i] for i in edges], [gaps[i] for i in edges], ls="", mfc="w", zorder=3, **style)
    return curve


def drawn(gap: Estimate) -> float:
    return max(gap.mean, LEAST)


def main() -> None:
    given = options(__doc__, PARTS)
    torch.set_num_threads(1)  # two parts in two processes take two cores
    c = smoke() if given.smoke else Configuration()
    study = Study(CLAIM, c, given)
    networks = capacity.Capacity(Study(capacity.CLAIM, c.networks, given), c.networks)
    compute = Compute(study, networks, c)
    for seed in study.seeds:
        for part in given.parts:
            compute.run(part, seed)
    cells = study.all_known([name for seed in c.seeds for name in names(c, seed)])
    if cells is None:
        return
    lines = [line(cells, c, engine, family) for family in FAMILIES for engine in engines(c)]
    encoders = {family: encoder_row(cells, c, family) for family in FAMILIES}
    study.write_table(report(cells, c, compute.data, lines, encoders))
    results = {
        "data": compute.data.name,
        "data_hash": compute.data.hash,
        "decoders": [cells[capacity.decoder_name(seed)] for seed in c.seeds],
        "encoders": {
            family: {name: asdict(value) if isinstance(value, Estimate) else value for name, value in entry.items()}
            for family, entry in encoders.items()
        },
        "lines": [asdict(each) for each in lines],
    }
    write(study.claim, c, results, draw(lines, encoders), study.results)


if __name__ == "__main__":
    main()
