"""Workarounds for Keras: several replicas, XLA's fallback, saved seeds, guarded updates, checked backups.

`internals` wraps its private attributes.
"""
