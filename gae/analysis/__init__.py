"""Questions to a fitted model: metrics, the inference gap, gradient checks, Markov chains, activation, restoration."""
