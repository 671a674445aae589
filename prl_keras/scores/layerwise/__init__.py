"""Per-example gradient norms layer by layer, from one ordinary forward and backward pass."""
