"""Four methods on handwritten digits of which half carry a wrong label: a table and a picture.

python -m binaries.demo
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments.demo import compare

_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/demo", "Folder of the four runs, table and picture.")
_EPOCHS = flags.DEFINE_integer("epochs", 40, "Passes over the training data.", lower_bound=1)
_EPSILON = flags.DEFINE_float("epsilon", 0.5, "Fraction of wrong labels, in (0, 1).")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a demo that is there.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with a demo that was interrupted.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --epochs=40.")
    try:
        compare(_OUTPUT_DIR.value, _EPOCHS.value, _EPSILON.value, _OVERWRITE.value, _RESUME.value)
    except (ValueError, OSError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    app.run(main)
