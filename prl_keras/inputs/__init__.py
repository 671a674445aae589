"""The input of `fit`: outputs and losses, labels, shapes, arrays, streams of batches, non-finite examples."""
