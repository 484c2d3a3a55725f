"""The study: what each part of Refiner contributes, and what baselines reach under the same conditions."""
