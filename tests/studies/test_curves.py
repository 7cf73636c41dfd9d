"""Bounds along a training."""

import math

from problems import plateau

from gae.studies.curves import held_out_bound


def test_the_bound_of_a_training_curve_is_that_of_a_high_mode() -> None:
    model, x, truth = plateau()
    values = held_out_bound(model, x, 200)["values"]
    assert max(abs(value - (truth - math.log(2))) for value in values) < 0.05
