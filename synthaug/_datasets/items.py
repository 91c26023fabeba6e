"""How the items of real data are read, and which labels the items of a mixture have."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from numpy.typing import ArrayLike

from synthaug._datasets.filters import Scores
from synthaug._images.fields import Adapter


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ItemFormat:
    """How items look, for real data that do not say it themselves, and for labels of another kind.

    ItemFormat(fields=mixing.Fields("img", "fine_label"))    # where items have what
    ItemFormat(soft_labels=True)                             # vectors of class probabilities
    """

    fields: Adapter | None = None
    """Where items of `real` have their image and their label, if not in the usual places:
    `mixing.Fields("img", "fine_label")`."""
    classes: Sequence[str] | None = None
    """Class names of `real`, in the order of its labels, if it does not know them, or knows others
    than `synthetic`."""
    any_size: bool = False
    """Allows synthetic images of another size than the real ones, which makes sense if the
    transform brings all to one size."""
    annotations_hold: bool = False
    """Keeps boxes, masks, key points and the like of the real item beside a synthetic image, which
    makes sense only if it shows the same things in the same places. Otherwise they are refused."""
    soft_labels: bool | ArrayLike = field(default=False, repr=False)
    """Serves vectors of class probabilities, float32 (num_classes,), which are one-hot for real
    images. True: those of the plan, as `synthaug.synthesizers.soft_labels`; or those of every row,
    float (N, num_classes), classes in the order of `real`. Images between two classes are served
    only so."""
    weights: Scores | float | None = field(default=None, repr=False)
    """How much synthetic images count, in [0, 1]: one number, one per row, float (N,), or a report.
    Their class probabilities are multiplied by it, which makes torch's cross-entropy the weighted
    loss, and no other loss: see `mixing.check_loss`. Rows of weight 0 are not served."""
