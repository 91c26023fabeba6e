"""The command that asks whether synthetic images are copies."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from synthaug._cli.arguments import names, next_line
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import ExtractorOptions, ImageOptions, RayOptions, UnlabeledFileOptions
from synthaug._cli.publishing import published_verdict
from synthaug._printable import amount

FILES = (".npy", ".npz", ".hdf5")
"""Of images or features, which `synthaug.audit` reads itself; a .h5 file is a cache."""
AUDIT = defaults("_audit.run:audit")


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """The comparison.

    Args:
        holdout: Real images that it never saw. Without them the verdict is inconclusive at best.
        features: Where distances are taken: pixels, spectrum, torchscript:FILE, torchvision:NAME or
            timm:NAME; several with commas between them.
        fdr: False discovery rate among the flagged images.
        k: Neighbors that an image's distance is compared with; 50 or fewer by default.
        index: How neighbors are searched; all but exact may miss some, and say the share found.
        engine: local works in this process, ray on the actors of a cluster.
        max_pairs: Pairs of images shown in the report.
        deduplicate: Set hold-out images aside that are training images, instead of refusing.
        accept: File of pairs that a person found harmless, as the report's page writes it; it is
            kept beside the synthetic images, and changes no verdict.
        redact: Leave real images, flagged ones, and names of files out of the report.
        shared: Let others on this machine read the report; it shows real images.
        seed: For the planted copies.
    """

    holdout: str | None = AUDIT.holdout
    features: str | list[str] | None = AUDIT.features
    fdr: float = AUDIT.fdr
    k: int | None = AUDIT.k
    index: Literal["exact", "auto", "ivf", "hnsw", "sq", "pq", "ivfpq"] = AUDIT.index
    engine: Literal["local", "ray"] = "local"
    max_pairs: int = AUDIT.max_pairs
    deduplicate: bool = AUDIT.deduplicate
    accept: str | None = None
    redact: bool = False
    shared: bool = False
    seed: int = AUDIT.seed


def audit(
    synthetic: str,
    train: str,
    options: AuditOptions,
    conform: ImageOptions,
    files: UnlabeledFileOptions,
    networks: ExtractorOptions,
    ray: RayOptions,
    *,
    out: str = "audit",
    call: Call,
) -> Result:
    """Ask whether synthetic images are copies of training images.

    synthaug audit cifar10.h5 folder:cifar10/train --holdout folder:cifar10/test

    Args:
        synthetic: A cache (FILE.h5), a data set such as folder:PATH, with or without a folder per
            class, or a .npy, .npz or .hdf5 file of images or features.
        train: The images that the generator was trained on. They are brought to the cache's image
            size and channels.
        options: Settings of the comparison.
        conform: For data sets.
        files: For folders.
        networks: Where features are computed and kept.
        ray: How to spread over a cluster.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug._audit import audit as run
    from synthaug._audit.acceptance import read_acceptance
    from synthaug._audit.notes import Notes, add_notes
    from synthaug._audit.verdict_report import told
    from synthaug.features import ExtractionConfig

    if options.accept is not None:
        add_notes(synthetic, Notes(accepted=(read_acceptance(options.accept),)))
    spaces = [networks.extractor(name) for name in names(options.features or [])]
    own_file = ":" not in synthetic and synthetic.lower().endswith(FILES)
    images: Any = synthetic if own_file else conform.synthetic(synthetic, files)

    def real(spec: str | None) -> Any:
        if spec is None or (":" not in spec and spec.lower().endswith((*FILES, ".h5"))):
            return spec
        if own_file:
            return conform.load(spec, files)
        return files.shaped(spec, images.image_shape)

    settings = ("fdr", "k", "index", "max_pairs", "deduplicate", "seed")
    with networks.kept(out) as features_dir:
        engine = ray.engine(options.engine)
        report = run(
            images,
            real(train),
            holdout=real(options.holdout),
            features=spaces or None,
            extraction=ExtractionConfig(directory=features_dir, engine=engine),
            **{name: vars(options)[name] for name in settings},
        )
        record = {
            "judged": len(report.judged),
            "flagged": report.flagged.tolist(),
            "withheld": report.withheld.tolist(),
            "accepted": [row for acceptance in report.accepted for row in acceptance.rows],
            "smallest_effect": report.smallest_effect,
        }
        text = told(report.verdict, report.reasons)
        line = _next(report, call, out)
        readers = {"redact": options.redact, "shared": options.shared}
        result = published_verdict(report, call, out, record, text=text, **readers)
        alone = " (readable by you alone, since they show real images; --shared lets others)"
        readable = "" if options.shared else alone
        return replace(result, text=f"{result.text}{readable}\n{line}")


def _next(report: Any, call: Call, out: str) -> str:
    """Returns the next step: mix the images that passed, if they are a cache.

    After an inconclusive audit they are looked at before anything else is done with them.
    """
    page, synthetic, train = f"{out}.html", call.arguments["synthetic"], call.arguments["train"]
    if report.verdict == "inconclusive":
        holdout = call.arguments["holdout"]
        if holdout is None or not len(report.withheld):
            more = "HOLDOUT" if holdout is None else _larger(report.settings)
            return f"Next: {call.brief.having(holdout=more).line}"
        look = f"Look at the pairs in {page}, which can save those that are harmless. "
        return f"{look}Next: {call.brief.having(accept='ACCEPTED.json').line}"
    look = f"Look at {page} first. " * (report.verdict != "pass" or len(report.withheld) > 0)
    if synthetic.endswith(".h5"):
        return look + next_line("evaluate", train, synthetic, "TEST", "--audit", f"{out}.json")
    if ":" in synthetic and len(report.withheld):
        remove = amount(len(report.withheld), "withheld image")
        listed = f"{out}.json has their rows"
        if not call.arguments["redact"] and any(names["file"] for names in report.withheld_files):
            listed = f"their files are `withheld_files` in {out}.json"
        return (
            f"{look}Then remove the {remove} from {synthetic}: {listed}. Keep that report: a later "
            "audit of the folder cannot know what was removed."
        )
    if ":" in synthetic:
        return look + next_line("cache", "import", synthetic, "CACHE.h5")
    return f"{look}Next: look up the flagged rows in the report, and leave them out."


def _larger(counts: Any) -> str:
    """The placeholder of a larger hold-out, with the number of images that it needs if known."""
    from synthaug._audit.verdict import holdout_needed

    needed = holdout_needed(counts["synthetic_judged"], counts["level"])
    return f"HOLDOUT_OF_{needed}" if needed > counts["holdout_distinct"] else "LARGER_HOLDOUT"
