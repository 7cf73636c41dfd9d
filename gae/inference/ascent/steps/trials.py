"""Acceptance and rejection of trial points, per row."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gae.inference.ascent.problem import choose_rows
from gae.inference.ascent.steps.first_order import State


def no_trial(u: Float[Tensor, "S B *U"]) -> State:
    """The state before the first trial, which any finite value improves on."""
    return {"point": u, "value": u.new_zeros(u.shape[:2]) - torch.inf, "grad": torch.zeros_like(u)}


def accept(
    is_accepted: Bool[Tensor, "S B"],
    u: Float[Tensor, "S B *U"],
    value: Float[Tensor, "S B"],
    grad: Float[Tensor, "S B *U"],
    state: State,
) -> State:
    """The accepted points: the trial in the rows that accept it, those of the state elsewhere."""
    return choose_rows(is_accepted, {"point": u, "value": value, "grad": grad}, state)
