"""Trains four methods on handwritten digits with half of the labels wrong; writes a table and a picture.

python -m binaries.demo
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.programs.demo import compare

flags.DEFINE_string("output_dir", "runs/demo", "Folder of the four runs, table and picture.")
flags.DEFINE_integer("epochs", 40, "Passes over the training data.", lower_bound=1)
flags.DEFINE_float("epsilon", 0.5, "Fraction of wrong labels, in (0, 1).")
flags.DEFINE_bool("overwrite", False, "Replace a demo that is there.")
flags.DEFINE_bool("resume", False, "Go on with a demo that was interrupted.")


def demo(**options: Any) -> None:
    compare(**options)


if __name__ == "__main__":
    door.run(demo, "--epochs=40")
