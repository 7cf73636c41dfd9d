"""Random draws of a training run, of which several processes take the parts that belong to their observations."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Size, Tensor
from torch.overrides import TorchFunctionMode

from gae.training.sampling import reseed, seed_of

if TYPE_CHECKING:
    import lightning_fabric

FILLS: dict[Any, Any] = {  # functions that make a tensor of noise, and the method that fills one alike
    torch.randn: Tensor.normal_,
    torch.randn_like: Tensor.normal_,
    torch.rand: Tensor.uniform_,
    torch.rand_like: Tensor.uniform_,
    torch.randint: Tensor.random_,
}
ELEMENTWISE = {  # functions of given tensors or numbers whose every element takes as much from a generator
    *(Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.exponential_, Tensor.cauchy_, Tensor.bernoulli_),
    *(torch.normal, torch.bernoulli),
}


class Noise:
    """The draws of a run's steps: functions of a key and, mostly, not of the number of processes.

    One process draws from torch's global generators. Of several, each draws elementwise noise for all observations of a
    batch, as one process would, and keeps that of its own. Other draws (masks of dropout, categories, draws by
    rejection) come from global generators that are seeded differently in each process.
    """

    def __init__(self, fabric: "lightning_fabric.Fabric"):
        self.device, self.rank, self.world = fabric.device, fabric.global_rank, fabric.world_size
        self.common = torch.Generator(self.device) if self.world > 1 else None

    def seed(self, *key: int | str) -> None:
        """Starts the draws anew."""
        reseed(self.device, *key, self.rank)
        if self.common is not None:
            self.common.manual_seed(seed_of(*key, 0))

    def of_rows(self, rows: slice, total: int) -> AbstractContextManager[Any]:
        """Draws for some rows of a batch of ``total`` observations."""
        return nullcontext() if self.common is None else _Share(rows, total, self.world, self.common)


class _Share(TorchFunctionMode):
    """Gives noise with one entry for each of some rows the values of these rows in the noise of a whole batch."""

    def __init__(self, rows: slice, total: int, world: int, generator: torch.Generator):
        super().__init__()
        self.rows, self.total, self.generator = rows, total, generator
        self.own = len(range(total)[rows])
        self.shares = total // world, -(-total // world)  # of all processes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = func(*args, **kwargs)
        if func not in FILLS and func not in ELEMENTWISE:
            return drawn
        dim = self._dim(drawn.shape)
        if dim is None or kwargs.get("generator") is not None or drawn.device != self.generator.device:
            return drawn
        if func in FILLS:
            bounds = [*args, kwargs.get("low"), kwargs.get("high")] if func is torch.randint else []
            func, args, kwargs = FILLS[func], (drawn, *(each for each in bounds if isinstance(each, int))), {}
        return self._kept(drawn, dim, func, args, kwargs)

    def _dim(self, shape: Size) -> int | None:
        """The dimension of the rows in noise (B, ...), (S, B, ...) or (M, S, B, ...).

        All processes choose alike between two that fit, since noise of different rows would be shared otherwise.
        """
        fitting = [dim for dim, size in enumerate(shape[:2]) if size in self.shares]
        dim = fitting[0] if len(fitting) == 1 else 2
        if len(fitting) == 2:
            dim = 0 if len(shape) == 2 else 1
        return dim if shape[dim : dim + 1] == (self.own,) else None

    @torch.no_grad()
    def _kept(self, drawn: Tensor, dim: int, draw: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        place = (*[slice(None)] * dim, self.rows)

        def whole(given: Any) -> Any:
            if not isinstance(given, Tensor) or given.shape != drawn.shape:
                return given
            wide = given.new_zeros((*drawn.shape[:dim], self.total, *drawn.shape[dim + 1 :]))
            wide[place] = given
            return wide

        if not any(isinstance(each, Tensor) and each.shape == drawn.shape for each in (*args, *kwargs.values())):
            return drawn
        named = {name: whole(value) for name, value in kwargs.items()}
        return drawn.copy_(draw(*map(whole, args), **named | {"generator": self.generator})[place])
