"""Measures which choices of the published code move PRL(L) at pairflip 45%, one at a time.

python -m binaries.published_code --data_dir=DIR
pip install -r requirements-peers.txt
python -m binaries.published_code --data_dir=DIR --authors_dir=CHECKOUT_OF_THEIR_CODE
"""

import contextlib
import pathlib
from typing import Any

with contextlib.suppress(ImportError):
    import torch._dynamo  # noqa: F401  before TensorFlow, after which it crashes

from absl import flags

from binaries import door
from prl_keras.experiments.benchmark import published

flags.DEFINE_integer("seeds", 3, "Seeds of labels, weights and batches.", lower_bound=1)
flags.DEFINE_string("authors_dir", None, "Checkout of github.com/illidanlab/PRL; adds its loss functions.")
flags.DEFINE_string("output_dir", "results/published", "Gets runs.jsonl and README.md.")
door.data_flags()


def published_code(output_dir: str, **options: Any) -> None:
    folder = pathlib.Path(output_dir)
    found = published.measure(folder / "runs.jsonl", **options)
    path = published.write_page(folder / "README.md", found)
    print(f"{path.read_text()}\n{path}")


if __name__ == "__main__":
    door.run(published_code, "--seeds=3")
