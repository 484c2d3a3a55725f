"""The study: what each part of Refiner is worth, and what the baselines reach with the same means."""
