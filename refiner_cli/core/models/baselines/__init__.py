"""Baselines behind the same interface as Refiner, one a file."""
