"""Commands that ask whether a model keeps its training images, whatever its images look like."""

from dataclasses import asdict, dataclass
from typing import Any

from synthaug._cli.arguments import next_line
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import FileOptions, ImageOptions, NetworkOptions
from synthaug._cli.publishing import published_verdict

MEMBERSHIP = defaults("_audit.members:membership")
CANARIES = defaults("_audit.canary_report:came_back")
GRID = defaults("synthesizers._losses:LossGrid")


@dataclass(frozen=True, kw_only=True)
class MembershipOptions:
    """The test.

    Args:
        random_split: Say so if one random split made TRAIN and HOLDOUT. Otherwise whatever tells
            them apart need not be the model, and nothing can be concluded.
        level: Chance of exit code 1 for a model that learned nothing of single images.
        levels: Noise levels at which losses are taken.
        draws: Draws of noise at each.
        batch_size: Images per call of the network.
        seed: Seed of the noise and of the random assignments.
    """

    random_split: bool | None = MEMBERSHIP.random_split
    level: float = MEMBERSHIP.level
    levels: int = GRID.levels
    draws: int = GRID.draws
    batch_size: int = MEMBERSHIP.batch_size
    seed: int = MEMBERSHIP.seed


def evaluate_membership(
    checkpoint: str,
    train: str,
    holdout: str,
    options: MembershipOptions,
    networks: NetworkOptions,
    files: FileOptions,
    *,
    out: str = "membership",
    call: Call,
) -> Result:
    """Say whether a model's losses tell its training images from images that it never saw.

    synthaug evaluate membership runs/digits folder:train folder:holdout --random-split

    Args:
        checkpoint: A generator with a denoising network: what train, invert or cascade wrote.
        train: The images that it was trained on, or a random part of them. All images are brought
            to the generator's image size and channels.
        holdout: Images that it never saw, set aside at random before it was trained.
        options: Settings of the test.
        networks: How the generator is loaded.
        files: For folders.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug._audit import membership
    from synthaug.synthesizers import LossGrid
    from synthaug.synthesizers._kinds import load as load_checkpoint

    model: Any = load_checkpoint(checkpoint, **networks.loading())
    report = membership(
        model,
        files.shaped(train, model.image_shape),
        files.shaped(holdout, model.image_shape),
        random_split=options.random_split,
        level=options.level,
        grid=LossGrid(levels=options.levels, draws=options.draws, seed=options.seed),
        batch_size=options.batch_size,
        seed=options.seed,
    )
    record = {
        "auc": report.told.auc,
        "interval": list(report.told.interval),
        "p_value": report.p_value,
        "reference_auc": report.reference.auc,
    }
    line = next_line("generate", checkpoint, "CACHE.h5", "--per-class", "100")
    if report.verdict == "fail":
        line = next_line("audit", "CACHE.h5", train, "--holdout", holdout)
    elif report.verdict != "pass":
        same = "If one random split made both, add --random-split. Else train on one side of such "
        line = f"{same}a split. {next_line('split', 'folder:IMAGES', 'SPLIT')}"
    return published_verdict(report, call, out, record, next=line)


def evaluate_canaries(
    synthetic: str,
    run: str,
    conform: ImageOptions,
    files: FileOptions,
    *,
    level: float = CANARIES.level,
    out: str = "canaries",
    call: Call,
) -> Result:
    """Look for the marks of canaries in synthetic images, by how often they were trained on.

    synthaug train folder:cifar10/train runs/marked --canaries 5 --steps 20000
    synthaug generate runs/marked marked.h5 --per-class 500
    synthaug evaluate canaries marked.h5 runs/marked

    Args:
        synthetic: Images that the model drew: a cache (FILE.h5), or a data set such as folder:PATH.
        run: Directory of the training, which has the plan of its canaries.
        conform: For data sets.
        files: For folders.
        level: Chance of exit code 1 for a model that learned no mark.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug._audit.canary_report import came_back

    report = came_back(conform.synthetic(synthetic, files), run, level=level)
    record = {
        "p_value": report.p_value,
        "by_dose": [asdict(one) for one in report.by_dose],
        "carriers": report.carriers.tolist(),
    }
    line = next_line("evaluate", "membership", run, "TRAIN", "HOLDOUT")
    return published_verdict(report, call, out, record, next=line)
