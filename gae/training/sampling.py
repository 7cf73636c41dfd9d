"""Random draws of a run, each a pure function of its seed: data of an epoch, their order, noise of a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from gae.data import Dataset
from gae.data.mapped import blocks, take


class Samples:
    """Training observations of each epoch and fixed validation observations, on the device of the data.

    Those of floating point are converted to ``dtype``, if it is given.
    """

    def __init__(
        self,
        data: Dataset | Tensor,
        validation: Tensor | float | None,
        seed: int,
        dtype: torch.dtype | None = None,
    ):
        self.data, self.seed, self.dtype = data, seed, dtype
        self.rows: Tensor | None = None
        self.cached: tuple[int, Tensor, Tensor] | None = None  # an epoch, its data, and the observations for training
        self.given = validation if isinstance(validation, Tensor) else None
        self.validation = None if self.given is None else self._converted(self.given)
        self.fraction = None if isinstance(validation, Tensor) else validation
        if self.fraction is not None:
            self._hold_out(self.fraction)

    def epoch(self, epoch: int) -> Tensor:
        """The training observations of an epoch, counted from 0; the last result is cached."""
        if self.cached is None or self.cached[0] != epoch:
            before, data = self.cached, self._data(epoch)
            if before is not None and data is before[1]:
                self.cached = epoch, data, before[2]
            else:
                x = self._converted(data)
                self.cached = epoch, data, x if self.rows is None else take(x, self.rows)
        return self.cached[2]

    @property
    def are_fixed(self) -> bool:
        """Whether every epoch has the same observations."""
        return not isinstance(self.data, Dataset) or self.data.binarization != "dynamic"

    def facts(self) -> dict[str, Any]:
        """Identification of the data in a checkpoint."""
        held = self.fraction if self.given is None else _hash(self.given)
        return {"data": self.data.hash if isinstance(self.data, Dataset) else _hash(self.data), "validation": held}

    def _data(self, epoch: int) -> Tensor:
        return self.data.epoch(epoch, self.seed) if isinstance(self.data, Dataset) else self.data

    def _converted(self, x: Tensor) -> Tensor:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def _hold_out(self, fraction: float) -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"A validation fraction must lie strictly between 0 and 1, got {fraction}.")
        x = self._converted(self._data(0))
        held = max(1, round(fraction * len(x)))
        if len(x) - held < 2:
            raise ValueError(
                f"validation={fraction} would hold out {held} of {len(x)} training samples, and fit needs at least 2. "
                "Use a smaller fraction."
            )
        order = torch.randperm(len(x), generator=generator(self.seed, "held out"))
        self.rows = order[held:].sort().values
        self.validation = take(x, order[:held].sort().values)


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the key.

    >>> torch.equal(torch.rand(3, generator=generator(0, "a")), torch.rand(3, generator=generator(0, "a")))
    True
    """
    return torch.Generator().manual_seed(seed_of(*key))


def reseed(device: torch.device, *key: int | str) -> None:
    """Seeds torch's global generators, on the CPU and the device, by the key.

    A step that starts with it can be repeated without a stored generator state.
    """
    torch.default_generator.manual_seed(seed_of(*key))  # torch.manual_seed would also initialise every other device
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed_of(*key))


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Restores the state of torch's global generators on exit."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield


def seed_of(*key: int | str) -> int:
    """A seed of 64 bits from a key."""
    return int.from_bytes(sha256(" ".join(map(str, key)).encode()).digest()[:8])


def _hash(x: Tensor) -> str:
    digest = sha256(f"{tuple(x.shape)} {x.dtype}".encode())
    for _, block in blocks(x):
        digest.update(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
