"""How much is wrong: an estimate of epsilon from what networks predict, with an interval."""
