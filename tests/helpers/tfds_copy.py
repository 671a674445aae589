"""Tiny data sets in the files of TFDS, as a user's copy of the real ones."""

import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


def write_copy(data_dir, name, splits, description="made for a test", files_per_split=1):
    """Writes `splits`, {split: list of examples}, where `tfds.load(name, data_dir=...)` looks for them.

    Returns:
        The folder with the files.
    """
    builder = tfds.builder(name, data_dir=data_dir)
    folder = pathlib.Path(data_dir) / name / str(builder.version)
    folder.mkdir(parents=True)
    rows = []
    for split, examples in splits.items():
        shards = np.array_split(np.arange(len(examples)), files_per_split)
        sizes = 0
        for number, shard in enumerate(shards):
            path = folder / f"{name}-{split}.tfrecord-{number:05}-of-{files_per_split:05}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for index in shard:
                    encoded = builder.info.features.encode_example(examples[index])
                    writer.write(builder.info.features.serialize_example(encoded))
            sizes += path.stat().st_size
        rows.append({
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": split,
            "numBytes": str(sizes),
            "shardLengths": [str(len(shard)) for shard in shards],
        })  # fmt: skip
    info = {"description": description, "fileFormat": "tfrecord", "name": name, "splits": rows}
    info["version"] = str(builder.version)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def tiny_cifar10(data_dir, train=7, test=5, **options):
    """A copy whose image i has all pixels i, and label i modulo 10; the test images go on from 100."""
    splits = {
        split: [
            {"image": np.full((32, 32, 3), first + i, np.uint8), "label": i % 10, "id": f"{split}_{i}"}
            for i in range(size)
        ]
        for split, first, size in (("train", 0, train), ("test", 100, test))
    }
    return write_copy(data_dir, "cifar10", splits, **options)


def tiny_celeb_a(data_dir, sizes=(24, 8, 20), seed=0, **options):
    """A copy with random faces: noise, and a bright square for each landmark."""
    rng = np.random.default_rng(seed)
    names = tfds.builder("celeb_a", data_dir=data_dir).info.features["attributes"]
    others = {"attributes": dict.fromkeys(names, False), "identity": {"Identity_No": 0}}
    splits = {}
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        splits[split] = []
        for _ in range(size):
            image = rng.integers(0, 60, (218, 178, 3), dtype=np.uint8)
            landmarks = {}
            for k, landmark in enumerate(("lefteye", "righteye", "nose", "leftmouth", "rightmouth")):
                x, y = rng.integers(60, 120, 2)
                image[y - 4 : y + 5, x - 4 : x + 5] = 100 + 30 * k
                landmarks |= {f"{landmark}_x": x, f"{landmark}_y": y}
            splits[split].append({"image": image, "landmarks": landmarks, **others})
    return write_copy(data_dir, "celeb_a", splits, **options)
