"""What Keras lacks: several replicas, XLA's fallback, saved seeds, guarded backups, and its private names."""
