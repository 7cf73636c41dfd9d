"""Data sets and readers: arrays, idx files, text, image folders and photographs as tensors."""

from gae.data.dataset import Dataset, Rows
from gae.data.loading import BINARIZATIONS, NAMES, LinearGaussian, linear_gaussian, load

__all__ = ["BINARIZATIONS", "NAMES", "Dataset", "LinearGaussian", "Rows", "linear_gaussian", "load"]
