"""Real images, however they come: what `load_dataset` returns, and how to wrap images of your own.

from synthaug.images import LabeledImages

train = LabeledImages(pixels, labels, classes=("cat", "dog"))  # uint8 (N, C, H, W), int (N,)
"""

from synthaug._images.labeled import LabeledImages, load_dataset

__all__ = ["LabeledImages", "load_dataset"]
