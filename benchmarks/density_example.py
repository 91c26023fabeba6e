"""How rare the images of a cache are among real ones: the numbers of `docs/low_density.md`.

    python benchmarks/density_example.py cifar10.h5 --train folder:cifar10/train \\
        --holdout folder:cifar10/test --features torchscript:resnet20-cifar10.pt
"""

import argparse
import time

from _machine import write

from synthaug import SynthCache, load_dataset
from synthaug.evaluation import score_hardness
from synthaug.features import named

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache")
    parser.add_argument("--train", required=True)
    parser.add_argument("--holdout", required=True)
    parser.add_argument("--features", required=True)
    options = parser.parse_args()
    started = time.process_time()
    report = score_hardness(
        SynthCache(options.cache),
        load_dataset(options.train),
        holdout=load_dataset(options.holdout),
        features=named(options.features, trusted=True),
    )
    rows = str(report).splitlines()
    print(report)
    seconds = time.process_time() - started
    print(write("density_cifar10", {**vars(options), "table": rows, "processor_seconds": seconds}))
