"""The synthesizers that have checkpoints: one line each, and what is declared in their folders."""

from synthaug.synthesizers import cascade, class_conditional, cold, inversion, low_density
from synthaug.synthesizers._parameters import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        class_conditional.METHOD,
        inversion.METHOD,
        cold.METHOD,
        low_density.METHOD,
        cascade.METHOD,
    )
}
"""By the name that recipes and checkpoints have."""


def register(method: Method) -> None:
    """Makes a synthesizer known to the command line, to sweeps and to citations.

    Call it before the command line is imported. Its class takes `classes`, `dtype` and `device` in
    `from_pretrained`; its checkpoints have `{"synthesizer": NAME}` in `synthaug.json`.

    Raises:
        ValueError: If another synthesizer has the name.
    """
    if METHODS.setdefault(method.name, method) != method:
        raise ValueError(
            f"A synthesizer called {method.name!r} exists already. Choose another name."
        )


def parameter_table() -> str:
    """All row parameters as a table in Markdown."""
    lines = ["| synthesizer | parameter | values | default | meaning |", "|---|---|---|---|---|"]
    for method in METHODS.values():
        for one in method.row_parameters:
            default = "depends on the model" if one.default is None else f"{one.default:g}"
            values = one.requirement.replace("not be negative", "be at least 0")[len("must be ") :]
            if one.type is bool:
                default = str(bool(one.default))
            lines.append(f"| `{method.name}` | `{one.name}` | {values} | {default} | {one.help} |")
    return "\n".join(lines)
