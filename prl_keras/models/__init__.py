"""Models that train on what they trust: `RobustModel`, `CoTeachingModel` and the step that they share."""
