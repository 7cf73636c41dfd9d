"""Linear decoders: mixtures of linear-Gaussian charts, factorisations, regression."""
