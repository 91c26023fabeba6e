"""Whether images that foreign code draws depend on their rows alone, tried before a job starts."""

from collections.abc import Callable, Sequence

from synthaug._plan import REQUIRED, Plan
from synthaug._types import Images


def check_rows(
    draw: Callable[[Plan], Images], plan: Plan, texts: Sequence[str], *, name: str, tolerance: float
) -> None:
    """Draws one row twice alone, and once beside another, and compares.

    The other one has the longest prompt and the row itself the shortest, since pipelines that pad
    the prompts of a call to the longest of them show it then.

    Args:
        draw: Draws rows; those of equal parameters in one call.
        plan: Rows that are to be drawn.
        texts: The prompt of each of them.
        name: Name of the synthesizer in error messages.
        tolerance: Gray levels by which an image may differ in other company, from rounding.

    Raises:
        ValueError: If the images differ.
    """
    alone, *other = _pair(plan, texts)
    row = plan.row(alone)
    image = draw(plan[[alone]])
    if (differs := _gray_levels(image, draw(plan[[alone]]))) > 1:
        raise ValueError(
            f"{name} drew the row {row} twice, and the images differ by {differs:.1f} gray levels. "
            "Something in it takes random numbers from elsewhere than the row's `generator`. Take "
            "another scheduler (one for flow matching without `stochastic_sampling`), and state "
            "every argument that the pipeline would choose at random."
        )
    if not other:
        return
    beside = draw(plan[[alone, *other]])[:1]
    if (differs := _gray_levels(image, beside)) > tolerance:
        raise ValueError(
            f"{name} drew the row {row} alone and beside another one, and the images differ by "
            f"{differs:.1f} gray levels. It may pad the prompts of a call to the longest of them. "
            "Pass `row_by_row=True` to `FromPipeline` (`--row-by-row` on the command line), and it "
            "is called for each row alone."
        )


def _pair(rows: Plan, texts: Sequence[str]) -> list[int]:
    """The rows of the shortest and the longest prompt among those that share a call, or any row."""
    shared = [name for name in rows.columns if name not in REQUIRED and "prompt" not in name]
    calls = list(zip(*(rows[name].tolist() for name in shared), strict=True)) or [()] * len(rows)
    best, spread = [0], -1
    for call in dict.fromkeys(calls):
        members = [i for i, other in enumerate(calls) if other == call]
        members.sort(key=lambda i: len(texts[i]))
        first, last = members[0], members[-1]
        if len(members) > 1 and len(texts[last]) - len(texts[first]) > spread:
            best, spread = [first, last], len(texts[last]) - len(texts[first])
    return best


def _gray_levels(one: Images, other: Images) -> float:
    """The largest difference of two images."""
    return float((one - other).abs().max()) * 127.5
