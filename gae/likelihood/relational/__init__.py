"""Likelihoods of relations among the points of a data set: t-SNE and locally linear embedding."""
