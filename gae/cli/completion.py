"""Values of arguments and options that a shell completes, known without importing torch."""

from collections.abc import Callable, Iterable

from gae.data.names import NAMES

Complete = Callable[[str], list[str]]

BINARIZATIONS = ("none", "threshold", "dynamic")
MISSING = ("refuse", "mask")
SPLITS = ("train", "test", "all")
SCHEDULES = ("cosine", "linear")
KEEP = ("best", "last")
HEADS = ("gaussian", "laplace", "bernoulli", "continuous-bernoulli", "poisson", "von-mises-fisher")
ENGINES = ("lbfgs", "adam", "gauss-newton", "encoder", "refine")
TRAINERS = ("encoder", "refine", "gauss-newton")  # of `gae fit --decoder`
LEARNS = ("fixed", "scalar", "pixel")  # of `gae fit --decoder`
COMPARED = ("unrolled", "detached", "amortised", "semi-amortised")  # trainings of `gae compare`
FLOWS = ("maf", "iaf", "nsf")  # of the third family of `gae compare`
SCORES = ("evidence", "reconstruction", "gap")
TASKS = ("denoise", "inpaint", "superresolve")
FORMATS = ("png", "tiff", "webp")


def one_of(values: Iterable[str]) -> Complete:
    """Completion by one of some values.

    >>> one_of(["train", "test", "all"])("t")
    ['train', 'test']
    """

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def some_of(values: Iterable[str]) -> Complete:
    """Completion of the last of several values, which are separated by commas.

    >>> some_of(["pca", "ppca", "vae"])("vae,p")
    ['vae,pca', 'vae,ppca']
    """

    def complete(incomplete: str) -> list[str]:
        given, comma, last = incomplete.rpartition(",")
        chosen = given.split(",")
        return [given + comma + value for value in values if value.startswith(last) and value not in chosen]

    return complete


def data_names(incomplete: str) -> list[str]:
    """Names of data sets; where none fits, the shell completes paths."""
    return one_of(NAMES)(incomplete)


def system_names(incomplete: str) -> list[str]:
    return one_of(_systems())(incomplete)


def several_systems(incomplete: str) -> list[str]:
    return some_of(("all", *_systems()))(incomplete)


def _systems() -> Iterable[str]:
    from gae.systems import SYSTEMS  # lazy: the table alone needs no torch

    return SYSTEMS
