"""Trains 20,000 steps on data full of faults, in one go and killed every few hundred steps, and compares.

python -m binaries.soak --output_dir=runs/soak
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments.soak import soak

flags.DEFINE_integer("steps", 20_000, "Steps of each of the two trainings, a multiple of 100.")
flags.DEFINE_integer("kill_every", 600, "About so many steps a process lives in the second training.")
flags.DEFINE_integer("seed", 0, "Of the data, the network and the kills.")
flags.DEFINE_string("output_dir", None, "New folder for the figures and the two trainings.", required=True)


def main(argv):
    del argv
    options = flags.FLAGS
    try:
        figures = soak(options.output_dir, options.steps, options.kill_every, options.seed)
    except (ValueError, OSError) as error:
        raise app.UsageError(str(error)) from error
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    app.run(main)
