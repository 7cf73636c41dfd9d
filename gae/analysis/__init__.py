"""Analysis of fitted models: metrics, inference gap, gradient checks, Markov chains, activation, restoration."""
