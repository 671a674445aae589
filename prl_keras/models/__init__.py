"""Models that train on the examples they trust: `RobustModel`, `CoTeachingModel` and their common step."""
