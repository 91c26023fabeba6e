"""The command that shows the whole job."""

from synthaug._cli.arguments import next_line
from synthaug._cli.call import Result
from synthaug._cli.declared import defaults


def demo(
    *,
    out: str = "synthaug-demo",
    per_class: int = defaults("_demo:DemoSettings").per_class,
    seed: int = defaults("_demo:demo").seed,
) -> Result:
    """The whole job on scikit-learn's handwritten digits, within five minutes on two cores.

    synthaug demo

    Args:
        out: Directory to write; run again to resume, or with another --per-class to keep the
            generator.
        per_class: Labeled images per class, from 2 on.
        seed: Seed of the split, the models and the plan.
    """
    from synthaug._demo import DemoSettings
    from synthaug._demo import demo as run

    page = run(out, seed=seed, settings=DemoSettings(per_class=per_class))
    audit, evaluation = page.with_name("audit.json"), page.with_name("evaluation.json")
    record = {"html": str(page), "audit": str(audit), "evaluation": str(evaluation)}
    line = next_line("split", "folder:YOUR-PHOTOS", "OUT")
    return Result(record=record, text=f"Report: {page}\n{line}")
