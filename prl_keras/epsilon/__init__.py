"""Estimates epsilon, the fraction of wrong labels, with an interval, from the predictions of networks."""
