"""Steps whose points are trials: accept or reject, per row."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gae.inference.ascent.problem import choose_rows
from gae.inference.ascent.steps.first_order import State


def no_trial(u: Float[Tensor, "S B *U"]) -> State:
    """The accepted points before the first trial: any finite value is better than theirs."""
    return {"point": u, "value": u.new_zeros(u.shape[:2]) - torch.inf, "grad": torch.zeros_like(u)}


def accept(
    taken: Bool[Tensor, "S B"],
    u: Float[Tensor, "S B *U"],
    value: Float[Tensor, "S B"],
    grad: Float[Tensor, "S B *U"],
    state: State,
) -> State:
    """The accepted points: the trial in the rows that take it, those of the state elsewhere."""
    return choose_rows(taken, {"point": u, "value": value, "grad": grad}, state)
