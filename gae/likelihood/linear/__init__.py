"""Linear decoders: mixtures of linear-Gaussian charts, matrix factorisation, regression."""
