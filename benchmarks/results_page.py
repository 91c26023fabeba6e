"""Writes every table of measured numbers in the README and the docs from the JSON files.

    python benchmarks/results_page.py            # rewrites the blocks in place
    python benchmarks/results_page.py --check    # names blocks that differ, changes nothing

A page marks the place of a block with two comments; what lies between them is replaced:

    <!-- results: demo -->
    <!-- end of results -->

The text around the blocks is written by hand and holds settings, not measured numbers. A test
compares the blocks with the files, so that no number can drift away from its measurement.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

Lines = list[str]
BLOCKS: dict[str, Callable[[], Lines]] = {}


def block(function: Callable[[], Lines]) -> Callable[[], Lines]:
    """Registers a function under its own name, with dashes."""
    BLOCKS[function.__name__.replace("_", "-")] = function
    return function


# Numbers


@cache
def read(name: str) -> Any:
    """Returns the content of one file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    return spread([100 * value for value in values])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def number(value: float) -> str:
    """Two digits of a small number, all digits before the point of a large one."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def points(values: Sequence[float], others: Sequence[float], *, error: bool = False) -> str:
    """Gain in percentage points, seed by seed, with its standard deviation or standard error."""
    gains = [100 * (a - b) for a, b in zip(values, others, strict=True)]
    width = stdev(gains) / len(gains) ** 0.5 if error else stdev(gains)
    return f"{mean(gains):+.1f} ± {width:.1f}"


def by_arm(rows: Sequence[Mapping[str, Any]], value: Callable[[Any], Any]) -> dict[str, list[Any]]:
    """Collects one value of every row by the row's arm."""
    table: dict[str, list[Any]] = {}
    for row in rows:
        table.setdefault(row["arm"], []).append(value(row))
    return table


def table(header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Lines:
    """Lays out a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def steered(key: str) -> str:
    """Names a setting of the low-density sampler; the files write it as "alpha-beta"."""
    alpha, _, beta = key.partition("-")
    if alpha == "0":
        return "plain"
    return f"alpha {alpha}" + (f", beta {beta}" if beta != "0" else "")


# What helped


DEMO = {
    "real, augmented": "the labeled images, augmented",
    "real + variants of them": "the same + variants of them alone",
    "real + guessed labels": "the same + images whose labels classifiers guessed",
    "real + synthetic": "the same + variants of both",
    "synthetic only (CAS)": "those variants alone",
}


def demo_arms(labels: int) -> dict[str, list[float]]:
    arms = read("demo")["summary"][f"{labels} labels per class"]["arms"]
    return {arm: arms[arm]["values"] for arm in DEMO}


@block
def helped() -> Lines:
    few = demo_arms(3)
    sweep = read("sweep_cifar10")["scaling"]["resnet20"]
    example = by_arm(read("cifar10_example")["runs"], lambda run: run["test_accuracy"])
    fewshot = {(r["per_class"], r["arm"]): r for r in read("inversion_fewshot")["summary"]}
    cold = by_arm(read("cold_augmentation")["rows"], lambda row: row["accuracy"])
    attacked = {
        "400": read("robust_digits")["summary"],
        "1,600": read("robust_digits_long")["summary"],
    }
    tuned = read("fine_tuning_first")["accuracies"]
    rare = {k: v["hard"] for k, v in read("low_density_digits")["accuracy"].items()}
    denoised = read("denoise_once")["summary"]
    once = denoised["trivialaugment, denoised once, t 0.1 to 0.5"]
    lost = once["corrupted, gain over trivialaugment"]

    def compared(name: str, old: Sequence[float], new: Sequence[float], verdict: str) -> list[str]:
        return [name, percent(old), percent(new), points(new, old), verdict]

    real, hard = fewshot[100, "real, flip and crop"], fewshot[100, "real + variants, flip and crop"]
    cold_blur, cold_clean = (
        ([row[kind] for row in cold["none"]], [row[kind] for row in cold["cold 0.4"]])
        for kind in ("light blur", "clean")
    )
    return table(
        ["experiment", "without, %", "with, %", "gain, points", ""],
        [
            compared(
                "Digits, 3 labels per class: guessed labels and variants",
                few["real, augmented"],
                few["real + synthetic"],
                "**helps**",
            ),
            compared(
                "The same, against the guessed labels alone",
                few["real + guessed labels"],
                few["real + synthetic"],
                "not shown",
            ),
            compared(
                "CIFAR-10, 300 labels, a generator that saw 50,000: three times as many images",
                sweep["real"],
                sweep["real + 3 x synthetic"],
                "**helps**",
            ),
            compared(
                "CIFAR-10, 5,000 labels, cold diffusion: accuracy under light blur",
                *cold_blur,
                "**helps**",
            ),
            compared("The same: accuracy on clean images", *cold_clean, "harms"),
            *(
                [
                    f"Digits, adversarial training of {steps} steps: robust accuracy",
                    percent(robust["real, affine"]["robust"]["values"]),
                    percent(robust["diffusion, 0.5"]["robust"]["values"]),
                    "{:+.1f} ± {:.1f}".format(*(100 * gain[k] for k in ("mean", "standard_error"))),
                    "**helps**" if gain["low"] > 0 else "not shown",
                ]
                for steps, robust in attacked.items()
                for gain in [robust["diffusion, 0.5"]["robust, gain over real, affine"]]
            ),
            [
                "Digits, TrivialAugment and then DenoiseOnce: accuracy under corruptions",
                percent(denoised["trivialaugment"]["corrupted"]["values"]),
                percent(once["corrupted"]["values"]),
                f"{100 * lost['mean']:+.1f} ± {100 * lost['standard_error']:.1f}",
                "harms",
            ],
            compared(
                "Digits, fine-tuned against trained from nothing: synthetic images alone",
                tuned["synthetic, from nothing"],
                tuned["synthetic, all weights"],
                "not shown",
            ),
            compared(
                "Digits, low-density sampling: the hardest tenth",
                rare["real"],
                rare["1-0"],
                "not shown",
            ),
            compared(
                "CIFAR-10, all labels, a small generator: half of the images replaced",
                example["real, augmented"],
                example["real + synthetic"],
                "harms",
            ),
            [
                "CIFAR-10, 100 labels per class, inversion of a weak generator",
                f"{100 * real['accuracy']:.1f} ± {100 * real['std']:.1f}",
                f"{100 * hard['accuracy']:.1f} ± {100 * hard['std']:.1f}",
                f"{100 * hard['gain']:+.1f} ± {100 * hard['gain_std']:.1f}",
                "harms",
            ],
        ],
    )


# The five papers


def link(*names: str) -> str:
    return ", ".join(f"[{name}](../benchmarks/results/{name}.json)" for name in names)


def claims(rows: Sequence[tuple[str, str, str, str]]) -> Lines:
    """Lays out claims: the claim, the verdict, the numbers, the files."""
    return table(["claim", "here", "measured", "result file"], rows)


@block
def claims_inversion() -> Lines:
    shots = {(r["per_class"], r["arm"]): r for r in read("inversion_fewshot")["summary"]}
    settings = {json.dumps(r["changed"]): r["accuracies"] for r in ablations()}
    branch = {
        name: percent(settings[json.dumps({"unconditional": name, "guidance_scale": 2.0})]["alone"])
        for name in ("mean", "null")
    }
    small, large = read("inversion_resolution")["rows"]
    gains = ", ".join(
        f"{100 * shots[n, 'real + variants, flip and crop']['gain']:+.1f}"
        f" ± {100 * shots[n, 'real + variants, flip and crop']['gain_std']:.1f}"
        for n in (10, 50, 100)
    )
    speed = read("inversion_speed_stable_diffusion")["ratio_to_plain_loop"]["synthaug, bfloat16"]
    return claims(
        [
            (
                "With k real images per class, variants replace real images, or help beside them.",
                "**refuted** for a small generator; Stable Diffusion needs a GPU",
                f"Gain in points at 10, 50 and 100 images per class: {gains} (3 splits).",
                link("inversion_fewshot", "inversion_fewshot_500"),
            ),
            (
                "The mean embedding is a better unconditional branch than an empty prompt.",
                "not shown: one split, two classifiers",
                f"Variants alone: mean {branch['mean']} %, learned null {branch['null']} %.",
                link("inversion_ablations"),
            ),
            (
                "Drawing at the target size saves time and costs no accuracy.",
                "time **reproduced**, accuracy **refuted** (one training, 3 classifiers)",
                f"{small['seconds']:.0f} instead of {large['seconds']:.0f} seconds for "
                f"{small['images']} images; variants alone {percent(small['accuracies']['alone'])} "
                f"instead of {percent(large['accuracies']['alone'])} %.",
                link("inversion_resolution"),
            ),
            (
                "Sampling takes 6.5 times less time, with 2 to 3 times better sample complexity.",
                "not testable: needs Stable Diffusion at two sizes and its accuracy",
                f"Learning the embeddings runs {speed['median']:.1f} times as fast as a plain loop "
                "of the recipe (random weights).",
                link("inversion_speed_stable_diffusion"),
            ),
        ]
    )


@block
def claims_cold() -> Lines:
    natural = {**read("cold_tables")["tasks"], **read("cold_tables_masks")["tasks"]}
    digits = read("cold_tables_digits")["tasks"]

    def compare(key: str, first: str, second: str, digits_after: int) -> str:
        pairs = [
            (name, table[first][key], table[second][key])
            for name, table in (
                ("blur", natural["blur"]["table"]),
                ("hole", natural["inpainting"]["table"]),
                ("snow", natural["snow"]["table"]),
                ("4 pixels", natural["super-resolution"]["table"]),
                ("digits, blur", digits["blur"]["table"]),
                ("digits, hole", digits["inpainting"]["table"]),
            )
        ]
        return "; ".join(f"{n} {a:.{digits_after}f} / {b:.{digits_after}f}" for n, a, b in pairs)

    broken = natural["generation"]["table"]
    return claims(
        [
            (
                "Algorithm 2 restores better than Algorithm 1.",
                "**reproduced** for blur, holes and snow of CIFAR-10 and blur of digits; "
                "**refuted** for two levels of super-resolution and for holes in digits "
                "(one training each)",
                "Fréchet distance, Algorithm 2 / 1: "
                + compare("frechet", "Algorithm 2", "Algorithm 1", 0)
                + ".",
                link("cold_tables", "cold_tables_masks", "cold_tables_digits"),
            ),
            (
                "One direct prediction is closest in every pixel, Algorithm 2 in distribution.",
                "**reproduced** for blur, snow and digits; **refuted** for holes of CIFAR-10, "
                "where Algorithm 2 wins both, and super-resolution (one training each)",
                "RMSE, direct / Algorithm 2: "
                + compare("rmse", "direct", "Algorithm 2", 3)
                + ". Fréchet distance, direct / Algorithm 2: "
                + compare("frechet", "direct", "Algorithm 2", 0)
                + ".",
                link("cold_tables", "cold_tables_masks", "cold_tables_digits"),
            ),
            (
                "A little noise that breaks the symmetry makes better images from nothing.",
                "**reproduced**, one training; the images are blobs of color",
                f"Fréchet distance {broken['broken symmetry']['frechet']:.0f} with it, "
                f"{broken['symmetric']['frechet']:.0f} without.",
                link("cold_tables"),
            ),
            (
                "Ordinary (hot) diffusion draws better images from nothing than the cold one.",
                "not shown: the hot case was not measured beside it",
                "",
                "",
            ),
        ]
    )


@block
def claims_low_density() -> Lines:
    digits, more = read("low_density_digits"), read("low_density_digits_beta")
    natural = read("low_density_cifar10")["table"]
    guided = read("low_density_cifar10_guided")["table"]
    plain, alpha = digits["table"]["0-0"], digits["table"]["1-0"]
    hardest = more["cost"]["levels"][-1]
    rejected, pushed = hardest["settings"]["0-0"], hardest["settings"]["0.5-4"]
    return claims(
        [
            (
                "The sampler moves images to harder and more outlying places.",
                "**reproduced** on digits, one training; on CIFAR-10 the plain images are "
                "harder than real ones to begin with",
                f"Digits, alpha 1: median hardness {plain['hardness_50']:.0f} to "
                f"{alpha['hardness_50']:.0f}, local outlier factor "
                f"{plain['outlier_factor']:.2f} to {alpha['outlier_factor']:.2f}.",
                link("low_density_digits", "low_density_cifar10"),
            ),
            (
                "It is cheaper than rejection sampling at equal label faithfulness.",
                "cost **reproduced** on digits, equal faithfulness **refuted** there; not testable "
                "on CIFAR-10, where no hard image kept its label",
                f"Beyond the {hardest['quantile']}th percentile, alpha 0.5 and beta 4: "
                f"{pushed['evaluations_ratio']:.1f} times fewer evaluations for an image that "
                f"keeps its label; {100 * pushed['faithful']:.0f} % keep it, "
                f"{100 * rejected['faithful']:.0f} % of the plain ones.",
                link("low_density_digits_beta"),
            ),
            (
                "The second term (beta) makes the images more realistic.",
                "not shown: one run each, and they disagree",
                "Taken for real, without beta and with beta 1: CIFAR-10 "
                f"{100 * natural['0.5-0']['seems_real']:.0f} and "
                f"{100 * natural['0.5-1']['seems_real']:.0f} %, with guidance "
                f"{100 * guided['0.5-0']['seems_real']:.0f} and "
                f"{100 * guided['0.5-1']['seems_real']:.0f} %.",
                link("low_density_cifar10", "low_density_cifar10_guided"),
            ),
            (
                "Images from sparse regions are not memorized.",
                "not shown: no result file of an audit of steered images",
                "",
                "",
            ),
        ]
    )


@block
def claims_azizi() -> Lines:
    fine = read("sweep_cifar10")["fine"]
    scaling = read("sweep_cifar10")["scaling"]
    example = by_arm(read("cifar10_example")["runs"], lambda run: run["test_accuracy"])
    column = {name: [row[i] for row in fine[1:]] for i, name in enumerate(fine[0])}
    scores = "; ".join(
        f"guidance {g}: {c} %, inception score {i}"
        for g, c, i in zip(
            column["guidance_scale"], column["CAS %"], column["inception score"], strict=True
        )
    )
    distances = ", ".join(column["Fréchet distance"])
    added = "; ".join(
        f"{model}, {ratio} times: "
        + points(arms[f"real + {ratio} x synthetic"], arms["real"], error=True)
        for model, arms in scaling.items()
        for ratio in (1, 3, 10)
    )
    return claims(
        [
            (
                "Low guidance gives the best accuracy of classifiers trained on synthetic images "
                "alone (CAS), while the inception score keeps rising.",
                "**reproduced** on CIFAR-10 and digits (one generator, 3 and 2 classifiers)",
                f"CIFAR-10, {scores}.",
                link("sweep_cifar10", "sweep_digits"),
            ),
            (
                "CAS follows the Fréchet distance.",
                "**refuted** on CIFAR-10 for this weak generator",
                f"Fréchet distance at the same guidance: {distances}. It falls where CAS falls.",
                link("sweep_cifar10"),
            ),
            (
                "Up to three times as many synthetic as real images help.",
                "**reproduced** for 300 labels and a generator that saw 50,000; not shown for "
                "all labels, where half of the images were replaced instead",
                f"Gain in points: {added}. All labels: "
                f"{points(example['real + synthetic'], example['real, augmented'])}.",
                link("sweep_cifar10", "cifar10_example"),
            ),
            (
                "ResNets and vision transformers on ImageNet gain.",
                "not testable: needs a large pretrained model and GPUs",
                "",
                "",
            ),
        ]
    )


@block
def claims_cascades() -> Lines:
    digits, natural = read("cascade_digits")["means"], read("cascade_cifar10")["means"]

    def both(*arms: str) -> str:
        return "; ".join(
            f"{name} " + " / ".join(f"{means[arm]:.{places}f}" for arm in arms)
            for name, means, places in (("digits", digits, 0), ("CIFAR-10", natural, 1))
        )

    truncated = [f"{kind}, s = {s}" for s in (100, 250) for kind in ("truncated", "non-truncated")]
    return claims(
        [
            (
                "A cascade without conditioning augmentation is worse than no cascade.",
                "**reproduced**, one training each",
                f"Fréchet distance, cascade / single model: {both('none', 'single')}.",
                link("cascade_digits", "cascade_cifar10"),
            ),
            (
                "With enough augmentation a cascade beats the single model.",
                "**refuted** on digits; not shown on CIFAR-10 (one training)",
                f"Truncated at s = 100 / single model: {both('truncated, s = 100', 'single')}.",
                link("cascade_digits", "cascade_cifar10"),
            ),
            (
                "At small sizes noise helps more than blur.",
                "**reproduced**, one training each",
                "No augmentation / blur / truncated at s = 100: "
                + both("none", "blur", "truncated, s = 100")
                + ".",
                link("cascade_digits", "cascade_cifar10"),
            ),
            (
                "Truncated and non-truncated conditioning are about equally good.",
                "not shown: one training",
                f"s = 100 and 250, truncated / not: {both(*truncated)}.",
                link("cascade_digits", "cascade_cifar10"),
            ),
            (
                "At 128 pixels and more, blur is the better augmentation.",
                "not testable: such sizes need GPUs",
                "",
                "",
            ),
        ]
    )


# Digits and CIFAR-10, few labels


@block
def demo() -> Lines:
    few, more = demo_arms(3), demo_arms(10)
    rows = [
        [
            text,
            percent(few[arm]),
            "" if arm == "real, augmented" else points(few[arm], few["real, augmented"]),
            percent(more[arm]),
            "" if arm == "real, augmented" else points(more[arm], more["real, augmented"]),
        ]
        for arm, text in DEMO.items()
    ]
    seconds = [run["processor_seconds"] for run in read("demo")["runs"]]
    flagged = [run["audit"]["flagged"] for run in read("demo")["runs"]]
    return [
        *table(["trained on", "3 labels", "gain", "10 labels", "gain"], rows),
        "",
        "Against the guessed labels alone, the variants of both gain "
        + points(few["real + synthetic"], few["real + guessed labels"])
        + " points with 3 labels and "
        + points(more["real + synthetic"], more["real + guessed labels"])
        + " with 10. Neither is distinguishable from zero. A run took "
        + f"{min(seconds):.0f} to {max(seconds):.0f} seconds of processor time. "
        + f"The audits flagged {max(flagged)} images and are inconclusive.",
    ]


@block
def cifar10_example() -> Lines:
    runs = by_arm(read("cifar10_example")["runs"], lambda run: run["test_accuracy"])
    return table(
        ["trained on", "accuracy, %"], [[arm, percent(values)] for arm, values in runs.items()]
    )


@block
def sweep_cifar10_amounts() -> Lines:
    names = {"real": "real images alone"} | {
        f"real + {n} x synthetic": f"and {word} synthetic ones"
        for n, word in ((1, "as many"), (3, "three times as many"), (10, "ten times as many"))
    }
    return amounts(read("sweep_cifar10")["scaling"], names)


@block
def sweep_digits_amounts() -> Lines:
    names = {"real": "real images alone"} | {
        f"real + {n} x synthetic": f"and {word} synthetic ones"
        for n, word in ((1, "as many"), (3, "three times as many"))
    }
    return amounts(read("sweep_digits")["scaling"], names)


def amounts(scaling: Any, names: Mapping[str, str]) -> Lines:
    models = list(scaling)
    return table(
        ["trained on", *(cell for model in models for cell in (model, "gain"))],
        [
            [
                text,
                *(
                    cell
                    for model in models
                    for cell in (
                        percent(scaling[model][arm]),
                        ""
                        if arm == "real"
                        else points(scaling[model][arm], scaling[model]["real"], error=True),
                    )
                ),
            ]
            for arm, text in names.items()
        ],
    )


@block
def sweep_cifar10_guidance() -> Lines:
    header, *rows = read("sweep_cifar10")["fine"]
    return table([header[0].replace("_scale", ""), *header[1:]], rows)


@block
def sweep_digits_guidance() -> Lines:
    header, *rows = read("sweep_digits")["fine"]
    return table([header[0].replace("_scale", ""), *header[1:]], rows)


@block
def sweep_cifar10_schedulers() -> Lines:
    _, *rows = read("sweep_cifar10")["coarse"]
    best: dict[tuple[str, str], dict[int, float]] = {}
    for scheduler, _, _, mix, evaluations, distance, *_ in rows:
        cells = best.setdefault((scheduler, mix), {})
        cells[int(evaluations)] = min(float(distance), cells.get(int(evaluations), 1e9))
    names = {
        ("dpmsolver++", ""): "DPM-Solver++",
        ("ddim", ""): "DDIM",
        ("ddpm", "0"): "DDPM, the smaller variance",
        ("ddpm", "1"): "DDPM, the larger variance",
    }
    return table(
        ["", "5 evaluations", "10", "20"],
        [[name, *(f"{best[key][n]:.1f}" for n in (5, 10, 20))] for key, name in names.items()],
    )


@block
def sampling_quality() -> Lines:
    rows = {
        (r["scheduler"], r["evaluations"]): r["frechet"] for r in read("sampling_quality")["rows"]
    }
    names = {"ddpm": "DDPM", "ddim": "DDIM", "dpmsolver++": "DPM-Solver++"}
    return table(
        ["", "5 evaluations", "10", "20"],
        [[text, *(f"{rows[name, n]:.1f}" for n in (5, 10, 20))] for name, text in names.items()],
    )


# Inversion


@block
def inversion_fewshot() -> Lines:
    rows = {(r["per_class"], r["arm"]): r for r in read("inversion_fewshot")["summary"]}
    many = {
        arm: values
        for arm, values in by_arm(
            read("inversion_fewshot_500")["rows"], lambda row: row["accuracies"]
        ).items()
    }

    def accuracy(arm: str) -> list[str]:
        cells = [rows[n, arm] for n in (10, 50, 100)]
        return [f"{100 * c['accuracy']:.1f} ± {100 * c['std']:.1f}" for c in cells] + [
            percent(many[arm][0])
        ]

    def gain(kind: str) -> list[str]:
        arm = f"real + variants, {kind}"
        cells = [rows[n, arm] for n in (10, 50, 100)]
        more = mean(many[arm][0]) - mean(many[f"real, {kind}"][0])
        return [f"{100 * c['gain']:+.1f} ± {100 * c['gain_std']:.1f}" for c in cells] + [
            f"{100 * more:+.1f}"
        ]

    kinds = ["none", "flip and crop", "RandAugment", "CutMix"]
    body = [
        line
        for kind in kinds
        for line in (
            [f"real, augmentation: {kind}", *accuracy(f"real, {kind}")],
            ["gain by variants", *gain(kind)],
        )
    ]
    body.append(["variants alone, flip and crop", *accuracy("variants alone, flip and crop")])
    return table(["real images per class", "10", "50", "100", "500 (one split)"], body)


def ablations() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read("inversion_ablations")["rows"]
    return rows


@block
def inversion_ablations() -> Lines:
    rows = ablations()
    accuracies = {json.dumps(row["changed"]): row["accuracies"] for row in rows}
    settings: dict[str, list[dict[str, Any]]] = {
        "unconditional branch, at guidance 2": [
            {"unconditional": name, "guidance_scale": 2.0}
            for name in ("mean", "class_mean", "group_mean", "zero", "null")
        ],
        "guidance": [
            {"guidance_scale": 1.0},
            {"guidance_scale": 1.5},
            {"unconditional": "mean", "guidance_scale": 2.0},
            {"guidance_scale": 3.0},
        ],
        "updates per embedding": [{"snapshot": n} for n in (0, 1, 3)],
        "sampling steps": [{"num_inference_steps": n} for n in (5, 10, 20)],
        "noise": [{"noise": x} for x in (0.0, 0.3, 0.6, 1.0)],
        "interpolation": [{"interpolation": x} for x in (0.0, 0.3, 0.5)],
        "path of interpolation": [{"spherical": True}],
        "variants per image": [{"ratio": x} for x in (1.0, 2.0, 5.0, 10.0)],
    }

    def cells(values: list[dict[str, Any]], arm: str) -> str:
        found = [100 * mean(accuracies[json.dumps(value)][arm]) for value in values]
        return ", ".join(f"{value:.1f}" for value in found)

    def named(value: dict[str, Any], title: str) -> str:
        chosen = value["unconditional"] if title.startswith("unconditional") else None
        number = next(reversed(value.values()))
        return str(chosen or ("spherical" if number is True else f"{number:g}"))

    body = [
        [
            title,
            ", ".join(named(value, title) for value in values),
            cells(values, "mixed"),
            cells(values, "alone"),
        ]
        for title, values in settings.items()
    ]
    common = accuracies[json.dumps({"guidance_scale": 1.5})]
    return [
        *table(["setting", "values", "real + variants, %", "variants alone, %"], body),
        "",
        f"The common setting (guidance 1.5, noise 0.1, interpolation 0.1, 10 updates, 8 steps, "
        f"4 variants) reaches {100 * mean(common['mixed']):.1f} % with real images and "
        f"{100 * mean(common['alone']):.1f} % alone; real images alone reach "
        f"{100 * mean(common['real']):.1f} %.",
    ]


@block
def inversion_resolution() -> Lines:
    return table(
        [
            "embeddings learned and variants drawn at",
            "variants alone, %",
            "with real, %",
            "seconds",
        ],
        [
            [
                f"{row['drawn_at']} x {row['drawn_at']}",
                percent(row["accuracies"]["alone"]),
                percent(row["accuracies"]["mixed"]),
                f"{row['seconds']:.0f}",
            ]
            for row in read("inversion_resolution")["rows"]
        ],
    )


@block
def inversion_variants() -> Lines:
    files = {
        "features of a MobileNetV2": read("inversion_variants"),
        "pixels": read("inversion_variants_pixels"),
    }
    distances = [
        [name, *(f"{file['distance_to_source'][name]['p50']:.1f}" for file in files.values())]
        for name in read("inversion_variants")["distance_to_source"]
    ]
    strongest = {
        f"variant, {row['parameter']} {row['value']:g}": [
            f"{other['to_source']['p50']:.1f}"
            for file in files.values()
            for other in file["growth"]
            if (other["parameter"], other["value"]) == (row["parameter"], row["value"])
        ]
        for row in read("inversion_variants")["growth"]
        if row["value"]
    }
    body = [*distances, *([name, *cells] for name, cells in strongest.items())]
    return table(["median distance to the source image", *files], body)


@block
def digits_choices() -> Lines:
    names = {
        "real, augmented": "real images, augmented",
        "real + variants of them": "with variants of them",
        "real + guessed labels": "with guessed labels",
        "real + synthetic": "with variants of labeled and guessed images",
        "label check": "the same, labels checked by classifiers (threshold 0.5)",
        "near": "the same, weaker noise and interpolation (0.25)",
        "far": "the same, stronger noise and interpolation (0.5)",
        "no guidance": "the same, without guidance",
        "fraction 0.5": "the same, half replaced instead of three quarters",
    }
    summary = read("digits_choices_3")["summary"]
    return table(
        ["trained on", "accuracy, %, mean and deviation over thirds"],
        [
            [text, f"{100 * summary[k]['mean']:.1f} ± {100 * summary[k]['std_over_thirds']:.1f}"]
            for k, text in names.items()
        ],
    )


# Cold diffusion


WAYS = ["degraded", "direct", "Algorithm 1", "Algorithm 2", "Algorithm 2, last prediction"]


def restored(file: str, tasks: Mapping[str, str]) -> Lines:
    tables = [(text, read(file)["tasks"][task]["table"]) for task, text in tasks.items()]
    header = [f"{text}: Fréchet distance | SSIM | RMSE" for text, _ in tables]
    body = [
        [
            way,
            *(
                f"{t[way]['frechet']:.0f} | {t[way]['ssim']:.3f} | {t[way]['rmse']:.3f}"
                for _, t in tables
            ),
        ]
        for way in WAYS
    ]
    lines = table(["", *header], body)
    lines[1] = "|" + "---|" * (1 + 3 * len(tables))
    return lines


@block
def cold_blur() -> Lines:
    return restored("cold_tables", {"blur": "blur", "super-resolution": "4 pixels"})


@block
def cold_masks() -> Lines:
    return restored("cold_tables_masks", {"inpainting": "hole", "snow": "snow"})


@block
def cold_digits() -> Lines:
    return restored("cold_tables_digits", {"blur": "blur", "inpainting": "hole"})


def augmented(file: str) -> Lines:
    content = read(file)
    arms = by_arm(content["rows"], lambda row: row["accuracy"])
    kinds = ["clean", "light blur", "heavy blur", "noise", "holes", "snow"]
    body = [
        [
            arm,
            percent([row["clean"] for row in rows]),
            *(f"{100 * mean(row[kind] for row in rows):.1f}" for kind in kinds[1:]),
            f"{1000 * content['seconds_per_image'][arm]:.2f}",
        ]
        for arm, rows in arms.items()
    ]
    return table(["trained with", *kinds, "ms per image"], body)


@block
def cold_augmentation() -> Lines:
    return augmented("cold_augmentation")


@block
def cold_augmentation_digits() -> Lines:
    return augmented("cold_augmentation_digits")


@block
def snow() -> Lines:
    return table(
        [
            "severity",
            *(f"{n} px: {w}" for n in (32, 128) for w in ("lighter by", "contrast kept", "white")),
        ],
        [
            [
                str(i + 1),
                *(
                    f"{row['ours'][key] * scale:{form}} / {row['theirs'][key] * scale:{form}}"
                    for row in (sizes["32"][i], sizes["128"][i])
                    for key, scale, form in (
                        ("lighter_by", 1, ".0f"),
                        ("contrast_kept", 1, ".2f"),
                        ("white", 100, ".1f"),
                    )
                ),
            ]
            for sizes in [read("snow")["sizes"]]
            for i in range(5)
        ],
    )


@block
def cold_speed() -> Lines:
    file = read("cold_speed")
    return table(
        ["32 images of 32 x 32 pixels, 50 levels", "times as fast as loops", "largest difference"],
        [
            [name, f"{ratio['median']:.2f}", f"{file['largest_difference'][name]:.1g}"]
            for name, ratio in file["speedup"].items()
        ],
    )


# Low density


def low_density(file: str, *, judged: bool) -> Lines:
    content = read(file)["table"]
    header = ["", "hardness: median", "mean", "AvgkNN", "LOF", "label kept"]
    header += ["taken for real"] * judged + ["Fréchet distance"]
    body = []
    for key, row in content.items():
        real = key == "held-out real"
        cells = [
            "held-out real" if real else steered(key),
            f"{row['hardness_50']:.0f}",
            f"{row['hardness_mean']:.0f}",
            f"{row['average_distance']:.2f}",
            f"{row['outlier_factor']:.2f}",
            f"{100 * row['faithful']:.1f} %",
        ]
        cells += [f"{100 * row['seems_real']:.0f} %"] * judged
        body.append([*cells, "" if real else f"{row['frechet']:.3g}"])
    return table(header, body)


def rejection(file: str, quantiles: Sequence[int], settings: Sequence[str]) -> Lines:
    levels = [x for x in read(file)["cost"]["levels"] if x["quantile"] in quantiles]
    body = []
    for level in levels:
        for key in settings:
            row = level["settings"][key]
            body.append(
                [
                    f"{level['quantile']} %",
                    steered(key),
                    f"{100 * row['faithful']:.0f} % (real: {100 * level['real_faithful']:.0f} %)",
                    f"{row['evaluations_ratio']:.1f}x",
                    f"{row['seconds_ratio']:.1f}x",
                ]
            )
    return table(["harder than", "", "label kept", "fewer evaluations", "fewer seconds"], body)


def hard_accuracies(file: str) -> Lines:
    return table(
        ["trained on", "all test images, %", "hardest tenth, %"],
        [
            [
                "real alone" if key == "real" else f"with {steered(key)} images",
                percent(row["all"]),
                percent(row["hard"]),
            ]
            for key, row in read(file)["accuracy"].items()
        ],
    )


@block
def low_density_digits() -> Lines:
    return low_density("low_density_digits", judged=False)


@block
def low_density_digits_cost() -> Lines:
    keys = ["0-0", "0.5-0", "1-0", "1.5-0", "0.5-1", "0.5-2"]
    return rejection("low_density_digits", [90, 95, 99], keys)


@block
def low_density_digits_beta() -> Lines:
    keys = ["0-0", "0.5-0", "0.5-2", "0.5-3", "0.5-4", "0.25-4", "1-4"]
    return rejection("low_density_digits_beta", [99], keys)


@block
def low_density_digits_accuracy() -> Lines:
    return hard_accuracies("low_density_digits")


@block
def low_density_cifar10() -> Lines:
    return low_density("low_density_cifar10", judged=True)


@block
def low_density_guided() -> Lines:
    return low_density("low_density_cifar10_guided", judged=True)


@block
def low_density_guided_accuracy() -> Lines:
    return hard_accuracies("low_density_cifar10_guided")


@block
def density() -> Lines:
    return ["```text", *read("density_cifar10")["table"], "```"]


# Cascades, fine-tuning, robustness, autoencoders


def cascade(file: str, levels: Sequence[int], places: int) -> Lines:
    content = read(file)
    rows = {row["arm"]: row for row in content["rows"]}
    (given,) = content["stages_given_real_images"]
    stages = [
        ("nothing", ["none"], "none"),
        ("blur", ["blur"], "blur"),
        ("noise, s = 0", ["s = 0"], "gaussian"),
        *(
            (
                f"noise, s = {s}: truncated / not",
                [f"truncated, s = {s}", f"non-truncated, s = {s}"],
                "",
            )
            for s in levels
        ),
        ("single model", ["single"], ""),
    ]
    body = [
        [
            name,
            " / ".join(f"{content['means'][arm]:.{places}f}" for arm in arms),
            f"{given[real]:.{places}f}" if real else "",
            " / ".join(f"{rows[arm]['evaluations']:.0f}" for arm in arms),
            " / ".join(f"{rows[arm]['seconds_per_image']:.2f}" for arm in arms),
        ]
        for name, arms, real in stages
    ]
    header = ["stage trained with", "drawn small images", "small copies of real images"]
    return table([*header, "evaluations", "seconds per image"], body)


@block
def cascade_digits() -> Lines:
    return cascade("cascade_digits", [100, 250, 400], 0)


@block
def cascade_cifar10() -> Lines:
    return cascade("cascade_cifar10", [100, 250], 1)


@block
def fine_tuning() -> Lines:
    content = read("fine_tuning_first")
    body = [
        [
            "trained from nothing" if row["arm"] == "from nothing" else f"fine-tuned, {row['arm']}",
            f"{row['learning_rate']:g}, {row['step']}",
            percent(content["accuracies"][f"synthetic, {row['arm']}"]),
            percent(content["accuracies"][f"real and synthetic, {row['arm']}"]),
            f"{row['test_frechet']:.0f}",
        ]
        for row in content["rows"]
    ]
    real = content["rows"][0]["real_frechet"]
    return [
        *table(
            [
                "",
                "learning rate, snapshot",
                "synthetic images alone (CAS), %",
                "real and synthetic, %",
                "Fréchet distance",
            ],
            body,
        ),
        "",
        f"Real images alone reach {percent(content['accuracies']['real'])} %, and have a Fréchet "
        f"distance of {real:.0f}.",
    ]


@block
def fine_tuning_explored() -> Lines:
    first, alike = read("fine_tuning"), read("fine_tuning_alike")
    return table(
        ["synthetic images alone (CAS), %", "as committed", "first run: rows that began alike"],
        [
            [
                row["arm"],
                *(percent(x["accuracies"][f"synthetic, {row['arm']}"]) for x in (first, alike)),
            ]
            for row in first["rows"]
        ],
    )


def interval(row: Mapping[str, Any] | None) -> str:
    """A gain in points with its standard error and its 95 % interval; nothing for no gain."""
    if row is None:
        return ""
    middle, error, low, high = (100 * row[key] for key in ("mean", "standard_error", "low", "high"))
    return f"{middle:+.1f} ± {error:.1f} ({low:+.1f} to {high:+.1f})"


@block
def few_steps() -> Lines:
    """Tabulates students against the sampler that they are to replace."""
    return by_evaluations("few_steps")


@block
def few_steps_samplers() -> Lines:
    """Tabulates samplers without students."""
    return by_evaluations("few_steps_samplers")


def by_evaluations(file: str) -> Lines:
    content = read(file)
    rows = content["summary"]
    samplers = {"ddim": "DDIM", "dpmsolver++": "DPM-Solver++"}
    usual = ("velocity", "dpmsolver++", 10)
    (slow,) = (r for r in rows if (r["network"], r["scheduler"], r["budget"]) == usual)
    seeds = content["settings"]["seeds"]
    return [
        *table(
            ["network", "sampler", "evaluations", "Fréchet distance", "images a second"],
            [
                [
                    row["network"],
                    samplers[row["scheduler"]],
                    str(row["evaluations"]),
                    spread(row["frechet"], 0) if seeds[1:] else f"{row['mean']:.0f}",
                    f"{row['images_per_second'] / slow['images_per_second']:.2g} times",
                ]
                for row in rows
            ],
        ),
        "",
        f"{'One seed' if not seeds[1:] else f'{len(seeds)} seeds'}, "
        f"{content['settings']['images']:,} images each, in the space `"
        f"{content['settings']['features']}` (levels of gray). Two halves of the "
        f"{content['real_images']:,} real images have a distance of "
        f"{content['real_to_real']:.0f}. Times are those of DPM-Solver++ with ten steps.",
    ]


def robust(file: str, shares: Sequence[float], further: str) -> Lines:
    summary = read(file)["summary"]
    control = "the same real digits, not augmented"
    names = {
        "real, affine": "none: real images, affine augmentation",
        "real, not augmented": "none: real images as they are",
    }
    for kind, text in (
        (control, control),
        ("Gaussians", "Gaussians"),
        ("diffusion", "diffusion"),
        ("diffusion, augmented", "diffusion, augmented too"),
    ):
        names |= {f"{kind}, {share}": f"{text}, {share}" for share in shares}
    names["further real digits, 0.5"] = f"{further} further real digits with their labels, 0.5"

    def row(arm: str, text: str) -> list[str]:
        gains = [
            interval(summary[arm].get(f"robust, gain over {other}"))
            for other in ("real, affine", *(f"{x}, {arm.rpartition(', ')[2]}" for x in others))
        ]
        accuracies = [percent(summary[arm][key]["values"]) for key in ("clean", "robust")]
        return [text, *accuracies, *gains]

    columns = {"Gaussians": "Gaussians", control: "those real images"}
    others = [x for x in columns if any(arm.startswith(x) for arm in summary)]
    return table(
        [
            "share of each batch",
            "clean, %",
            "robust, %",
            "gain over real images alone",
            *(f"gain over the same share of {columns[x]}" for x in others),
        ],
        [row(arm, text) for arm, text in names.items() if arm in summary],
    )


@block
def denoise_once() -> Lines:
    summary = read("denoise_once")["summary"]

    def gain(arm: str, other: str) -> str:
        return interval(summary[arm].get(f"corrupted, gain over {other}"))

    return table(
        [
            "augmentation",
            "clean, %",
            "corrupted, %",
            "calibration error",
            "gain over the same without denoising",
            "gain over TrivialAugment",
        ],
        [
            [
                arm,
                percent(row["clean"]["values"]),
                percent(row["corrupted"]["values"]),
                f"{row['calibration_error']['mean']:.3f}",
                gain(arm, arm.partition(", denoised")[0]) if "denoised" in arm else "",
                gain(arm, "trivialaugment"),
            ]
            for arm, row in summary.items()
        ],
    )


@block
def robust_digits() -> Lines:
    return robust("robust_digits", [0.3, 0.5, 0.7], "598")


@block
def robust_long() -> Lines:
    return robust("robust_digits_long", [0.5], "598")


@block
def robust_longer() -> Lines:
    return robust("robust_digits_longer", [0.5], "598")


@block
def robust_no_average() -> Lines:
    return robust("robust_digits_no_average", [0.5], "598")


@block
def autoencoder_ceiling() -> Lines:
    return table(
        ["data", "trained on", "error of a pixel (RMSE, in [0, 1])", "accuracy, %"],
        [
            [
                name,
                row["arm"],
                f"{row['rmse']:.2f}" if row["rmse"] else "",
                percent(row["accuracies"]),
            ]
            for name, file in (
                ("digits", "autoencoder_ceiling_digits"),
                ("CIFAR-10", "autoencoder_ceiling_cifar10"),
            )
            for row in read(file)["rows"]
        ],
    )


# The audit


@block
def audit_copies() -> Lines:
    kinds = read("audit_copies")["kinds"]
    body = []
    for count in ("10", "25"):
        rows = {name: kind[count] for name, kind in kinds.items() if count in kind}
        noticed = {name: row["noticed"]["share"] for name, row in rows.items()}
        seldom = [f"{name} ({share:.2f})" for name, share in noticed.items() if share < 0.85]
        body.append(
            [
                count,
                f"{len(rows) - len(seldom)} of {len(rows)}",
                f"{mean(noticed.values()):.2f}",
                str(sum(row["share_withheld"]["mean"] >= 0.5 for row in rows.values())),
                str(sum(row["share_flagged"]["mean"] >= 0.5 for row in rows.values())),
                ", ".join(seldom),
            ]
        )
    honest = read("audit_copies")["honest"]
    alone = read("audit_copies_without_twins")["kinds"]
    flagged = sum(kind["25"]["share_flagged"]["mean"] >= 0.5 for kind in alone.values())
    return [
        *table(
            [
                "copies among 1,000",
                "kinds noticed",
                "share of draws noticed",
                "kinds half withheld",
                "kinds half flagged one by one",
                "seldom noticed (share of draws)",
            ],
            body,
        ),
        "",
        f"The {honest['verdicts']['pass']} audits without copies pass; they withhold "
        f"{honest['withheld']['min']} to {honest['withheld']['max']} of 1,000 images as "
        f"near-duplicates. Without the near-duplicates of CIFAR-10, half of 25 copies is flagged "
        f"one by one for {flagged} of {len(alone)} kinds (one draw).",
    ]


@block
def audit_membership() -> Lines:
    body = []
    for count, model in read("audit_membership")["models"].items():
        asked, seen = model["membership"], model["audit"]

        def ranked(which: str, asked: Mapping[str, Any] = asked) -> str:
            low, high = asked[f"{which}interval"]
            return f"{asked[f'{which}auc']:.2f} ({low:.2f} to {high:.2f})"

        low, high = asked["recognized_interval"]
        body.append(
            [
                f"{int(count):,} digits",
                ranked(""),
                ranked("reference_"),
                f"{asked['recognized_at_1_percent']:.2f} ({low:.2f} to {high:.2f})",
                asked["verdict"],
                f"{seen['verdict']}, {seen['withheld']} of {seen['audited']} withheld",
            ]
        )
    return table(
        [
            "trained on",
            "membership: AUC",
            "of a reference that never saw the model",
            "recognized at 1 % false alarms",
            "membership",
            "audit of images",
        ],
        body,
    )


@block
def audit_peers() -> Lines:
    peers = read("audit_claims")["peers"]
    ways = {name: way for name, way in peers.items() if isinstance(way, dict)}
    ranked = {name: way for name, way in ways.items() if "average_precision" in way}
    order = sorted(ranked, key=lambda name: -ranked[name]["average_precision"])
    body = [
        [name, f"{ranked[name]['average_precision']:.2f}", f"{100 * ranked[name]['found']:.0f}"]
        for name in order
    ]
    noticed = 100 * ways["C_T, one cell"]["noticed at 0.01"]
    return [
        *table(["way", "average precision", "copies found among 1 % false alarms, %"], body),
        "",
        f"Means over {peers['audits']} sets with {peers['copies']} copies each. C_T, which ranks "
        f"no image, notices {noticed:.0f} % of the sets at a level of 0.01.",
    ]


@block
def audit_claims() -> Lines:
    claims = read("audit_claims")["claims"]
    above = [name for name, claim in claims.items() if claim["claimed_above_real"]]
    body = [
        [
            name,
            f"{claim['claimed']:.2f}",
            f"{claim['real']['share']:.2f} ({claim['real']['at least']:.2f} to "
            f"{claim['real']['at most']:.2f})",
        ]
        for name, claim in claims.items()
    ]
    exceeded = f"The claim exceeds the limits for: {', '.join(above)}." if above else ""
    return [
        *table(["planted kind", "claimed", "real"], body),
        "",
        exceeded or f"No claim of the {len(claims)} exceeds the limits of what came true.",
    ]


@block
def audit_level() -> Lines:
    rows = {f"real images: {k}": v for k, v in read("audit_level")["scenarios"].items()}
    rows |= {f"generators of digits: {k}": v for k, v in read("audit_models")["kinds"].items()}

    def wrong(rate: Mapping[str, float], audits: int) -> str:
        return f"{rate['share'] * audits:.0f} (at most {100 * rate['at most']:.1f} in 100)"

    body = []
    for name, row in rows.items():
        audits = row.get("divisions") or row["audits"]
        mistakes = (wrong(row[key], audits) for key in ("wrongly_failed", "wrongly_looked"))
        body.append([name, str(audits), *mistakes])
    return table(["data", "audits", 'wrong "fail"', 'wrong "look at these rows"'], body)


@block
def audit_overfit() -> Lines:
    body = []
    for name, model in read("audit_overfit")["models"].items():
        (authentic,) = (x for x in model["descriptive"] if x["name"] == "authentic share")
        body.append(
            [
                f"{model['train']:,} digits" + (", the rest" if name == "all" else ""),
                model["verdict"],
                f"{model['flagged']} of {model['synthetic']}",
                "{share:.2f} ({expected_share:.2f})".format(**model["competition"]),
                f"{authentic['synthetic']:.2f} ({authentic['holdout']:.2f})",
            ]
        )
    return table(
        [
            "trained on",
            "verdict",
            "flagged",
            "closest to a training image (by chance)",
            "authentic (hold-out)",
        ],
        body,
    )


@block
def audit_canaries() -> Lines:
    def share(cell: Mapping[str, Any]) -> str:
        low, high = cell["interval"]
        return f"{cell['share']:.2f} ({low:.2f} to {high:.2f})"

    return table(
        [
            "repetitions",
            "mark came back",
            "control's mark",
            "found by distances",
            "loss below the control's",
        ],
        [
            [
                str(row["dose"]),
                *(share(row[k]) for k in ("canary", "control", "distance", "membership")),
            ]
            for row in read("audit_canaries")["by_dose"]
        ],
    )


@block
def audit_speed() -> Lines:
    ways = ["synthaug", "torch.cdist", "scikit-learn", "imagededup"]
    whole, large = read("audit_whole"), read("audit_large")
    return [
        *table(
            ["numbers per vector", "matrix product", *ways],
            [
                [
                    f"{int(dim):,}",
                    f"{row['matrix product']['median']:.1f} s",
                    *(f"{row[way]['to floor']:.2f}" for way in ways),
                ]
                for dim, row in read("audit_speed")["search"].items()
            ],
        ),
        "",
        f"A whole audit of 10,000 images against all 50,000 of CIFAR-10 and 10,000 held out takes "
        f"{whole['seconds']:.0f} seconds on two cores ({whole['processor_seconds']:.0f} of "
        f"processor time) and {whole['peak_gib']:.1f} GiB. One of 1,000 vectors against a million "
        f"takes {large['processor_seconds']:.0f} seconds of one processor and "
        f"{large['peak_gib']:.1f} GiB.",
    ]


@block
def audit_ten_million() -> Lines:
    content = read("audit_ten_million")
    names = {
        "audit": "the audit of 200 vectors, 25 of them copies moved a little, with 200 held out",
        "exact": "the exact search for these 400 alone",
        "ivfpq_build": "`ivfpq` of the first million: to build",
        "ivfpq": "to search for the 400 in it",
    }
    return table(
        ["", "processor seconds", "memory at most"],
        [
            [
                text,
                f"{content[key]['processor_seconds']:.3g}",
                f"{content[key]['peak_gib']:.1f} GiB",
            ]
            for key, text in names.items()
        ],
    )


# Costs


@block
def cache_read() -> Lines:
    names = {
        "numpy.memmap": "`numpy.memmap`",
        "synthaug": "**synthaug**",
        "synthaug, first reading (with checksums)": "synthaug, first reading, with checksums",
    }
    sizes = read("cache_read")["sizes"]
    ways = [
        way
        for way in sizes["32"]["alone"]["ways"]
        if all(way in s["alone"]["ways"] for s in sizes.values())
    ]
    return table(
        ["", *(f"{size} pixels" for size in sizes)],
        [
            [
                names.get(way, way),
                *(
                    f"{size['alone']['ways'][way]['ratio']['median']:,.3g}"
                    for size in sizes.values()
                ),
            ]
            for way in ways
        ],
    )


@block
def encoded_caches() -> Lines:
    """Tabulates reads per second, and processor time over that of the decoder alone."""
    names = {"bare decoder": "decoder alone", "synthaug": "**synthaug**"}
    found = {
        f"{size}: {encoding}": ways["ways"]
        for size, encodings in read("encoded_caches")["sizes"].items()
        for encoding, ways in encodings.items()
    }

    def cell(numbers: Mapping[str, Any]) -> str:
        rate = numbers["reads per second"]["median"]
        return f"{rate:.0f} ({numbers['processor time over bare decoder']['median']:.2f})"

    rows = [
        [names.get(way, way), *(cell(ways[way]) for ways in found.values())]
        for way in next(iter(found.values()))
    ]
    sizes = [f"{ways['synthaug']['bytes per image'] / 1000:.0f} KB" for ways in found.values()]
    return table(["", *found], [*rows, ["bytes of an image in our cache", *sizes]])


@block
def remote_caches() -> Lines:
    """Tabulates what a store adds, way by way."""
    rows = []
    for way, pair in read("remote_caches")["pairs"].items():
        seconds = [f"{numbers['median']:.2g} s" for numbers in pair["seconds"].values()]
        times = "{median:.2f} ({min:.2f} to {max:.2f})".format(**pair["ratio"])
        rows.append([way, seconds[0], pair["compared_with"], seconds[1], times])
    return table(["", "time", "compared with", "time", "times as long"], rows)


@block
def cache_mixed() -> Lines:
    names = {
        "LabeledImages": "synthaug's own (`load_dataset`)",
        "as CIFAR10, augmented": "like torchvision's CIFAR10, with flip and crop",
        "as CIFAR10": "the same, without any transform",
    }
    sizes = read("cache_mixed")["sizes"]
    return table(
        ["`real`", *(f"{how}, {' / '.join(sizes)} px" for how in ("items", "batches of 128"))],
        [
            [
                text,
                *(
                    " / ".join(
                        f"{s['mixed'][key][how]['ratio']['median']:.2f}" for s in sizes.values()
                    )
                    for how in ("items", "batches")
                ),
            ]
            for key, text in names.items()
        ],
    )


@block
def sampling_cost() -> Lines:
    return table(
        ["pixels", "diffusers DDIMPipeline", "synthaug", "synthaug, guided (of two branches)"],
        [
            [
                str(row["size"]),
                *(
                    f"{row['ratio_to_bare'][way]['median']:.2f}"
                    for way in ("diffusers DDIMPipeline", "synthaug", "synthaug, guided")
                ),
            ]
            for row in read("sampling_cost")["cost"]
        ],
    )


def inversion_files() -> dict[str, dict[str, Any]]:
    return {f"{n} pixels": read(f"inversion_updates_{n}") for n in (8, 32)}


def inverted_by(file: Mapping[str, Any]) -> dict[tuple[str, int], tuple[float, float]]:
    """Returns (way, updates) => means over seeds of loss and distance."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for seed in file["seeds"].values():
        for row in seed["rows"]:
            found.setdefault((row["way"], row["updates"]), []).append(
                (row["loss"], row["distance"])
            )
    return {
        key: (mean(loss for loss, _ in all_), mean(distance for _, distance in all_))
        for key, all_ in found.items()
    }


@block
def inversion_updates() -> Lines:
    """Tabulates loss and distance of variants after some updates, for every way of learning."""
    files = {name: inverted_by(file) for name, file in inversion_files().items()}
    seeds = {name: len(file["seeds"]) for name, file in inversion_files().items()}
    heads = [f"{name} ({n} seed{'s' * (n > 1)}): loss, distance" for name, n in seeds.items()]
    keys = sorted({key for file in files.values() for key in file}, key=lambda key: key[::-1])
    return table(
        ["updates", "way", *heads],
        [
            [f"{updates:,}", way]
            + [
                f"{file[way, updates][0]:.4f}, {file[way, updates][1]:.2f}"
                if (way, updates) in file
                else ""
                for file in files.values()
            ]
            for way, updates in keys
        ],
    )


@block
def inversion_ratio() -> Lines:
    """Tabulates the fewest updates that were tried and reach loss and distance of the paper's."""
    rows = []
    for name, file in inversion_files().items():
        found, cost = inverted_by(file), file["seconds_per_update"]["ratio"]["median"]
        paper = "the paper's loop"
        for start in (paper, f"{paper} from the encoder's tokens"):
            for most in sorted(u for way, u in found if way == start):
                for ours in ("synthaug", "synthaug from noise"):
                    fewest = [
                        u
                        for way, u in sorted(found)
                        if way == ours
                        and found[way, u][0] <= found[start, most][0]
                        and found[way, u][1] <= found[start, most][1]
                    ]
                    if fewest and (ours == "synthaug" or start == paper):
                        times = most / min(fewest) / cost
                        rows.append(
                            [name, start, f"{most:,}", ours, str(min(fewest)), f"{times:.1f}"]
                        )
    heads = ["model", "loop", "its updates", "beside", "updates", "times as many images per second"]
    return table(heads, rows)


@block
def inversion_speed() -> Lines:
    return table(
        ["model", "way", "updates per second", "times a plain loop"],
        [
            [
                f"{file['model']}, {file['image_shape'][-1]} pixels",
                way,
                f"{rate['median']:.3g}",
                f"{file['ratio_to_plain_loop'][way]['median']:.2f}",
            ]
            for file in (read("inversion_speed_stable_diffusion"), read("inversion_speed_pixel"))
            for way, rate in file["updates_per_second"].items()
        ],
    )


@block
def engines() -> Lines:
    overhead = read("engines_overhead")["processor_microseconds_per_row"]
    rate = {k: v["median"] for k, v in read("engines_efficiency")["images_per_second"].items()}
    efficiency = read("engines_efficiency")["efficiency_of_two_by_the_clock"]
    start = read("engines_efficiency")["seconds_before_the_first_draw"]
    same = read("engines_same_images")["against_one_process"]
    rows = [
        ["one process", "local", "core0", ""],
        ["shards", "one shard", "shards2", "shards3"],
        ["torchrun", "", "torchrun2", "torchrun2"],
        ["Ray", "ray, one actor", "ray2", "ray2"],
    ]
    return table(
        [
            "engine",
            "microseconds per row",
            "images per second",
            "efficiency of two",
            "seconds to the first image",
            "same file as one process",
        ],
        [
            [
                name,
                f"{overhead[one]['median']:.0f}" if one else "",
                f"{rate[two]:.0f}",
                f"{efficiency[two]['median']:.2f}" if two in efficiency else "",
                f"{start[two]['median']:.0f}",
                ("yes" if same[equal]["files_are_equal"] else "no") if equal else "",
            ]
            for name, one, two, equal in rows
        ],
    )


@block
def ray_faults() -> Lines:
    return table(
        ["fault", "rows drawn again", "rows damaged", "file equals that of one process"],
        [
            [
                fault,
                str(row["rows_drawn_again"]),
                str(row["rows_damaged"]),
                "yes" if row["file_equals_that_of_one_process"] else "no",
            ]
            for fault, row in read("ray_faults")["faults"].items()
        ],
    )


@block
def plan_memory() -> Lines:
    steps = ["create", "open", "generate", "mix", "merge", "audit"]
    rows = read("plan_memory")["rows"]
    return table(
        ["step", *(f"{count} rows" for count in rows)],
        [
            [
                f"`{s}`",
                *(f"{r[s]['peak_mb']} MB" if s in r else "not measured" for r in rows.values()),
            ]
            for s in steps
        ],
    )


@block
def cpu_paths() -> Lines:
    parts = read("cpu_paths")["parts"]
    ways = ["contiguous", "batch 16", "batch 256", "2 threads"]

    def ratio(part: Any, way: str, kind: str) -> str:
        row = part["ways"].get(way)
        return "" if row is None else f"{row[kind]['median']:.2f}"

    return table(
        ["job", *ways, "2 threads, by the clock"],
        [
            [
                name,
                *(ratio(part, way, "processor_ratio") for way in ways),
                ratio(part, "2 threads", "clock_ratio"),
            ]
            for name, part in parts.items()
            if "2 threads" in part["ways"]
        ],
    )


@block
def cpu_compiled() -> Lines:
    files = (read("cpu_paths"), read("cpu_compiled"))
    return table(
        ["job", "processor", "time of a step", "first step", "steps until it pays"],
        [
            [
                name.removesuffix(", compiled"),
                file["machine"]["capability"],
                f"{part['ways']['compiled']['processor_ratio']['median']:.2f}",
                f"{part['ways']['first step']['processor_seconds']:.0f} s",
                number(part["ways"]["steps until it pays"] or float("inf")),
            ]
            for file in files
            for name, part in file["parts"].items()
            if "compiled" in part["ways"]
        ],
    )


@block
def ddim_clipping() -> Lines:
    rows = read("ddim_clipping")["rows"]
    ways = dict.fromkeys((r["scheduler"], r["evaluations"], r["clip_sample"]) for r in rows)
    scales = sorted({row["guidance"] for row in rows})

    def distance(way: Any, scale: float) -> str:
        names = ("scheduler", "evaluations", "clip_sample")
        found = [
            row["distance"]
            for row in rows
            if tuple(row[name] for name in names) == way and row["guidance"] == scale
        ]
        return spread(found, 0)

    return table(
        ["sampler", "evaluations", "clips", *(f"guidance {scale:g}" for scale in scales)],
        [
            [way[0], str(way[1]), "yes" if way[2] else "no", *(distance(way, s) for s in scales)]
            for way in ways
        ],
    )


@block
def cpu_bfloat16() -> Lines:
    parts = read("cpu_bfloat16")["parts"]
    return table(
        ["job", "time in bfloat16"],
        [
            [
                name,
                "{median:.2f} ({min:.2f} to {max:.2f})".format(
                    **part["ways"]["bfloat16"]["processor_ratio"]
                ),
            ]
            for name, part in parts.items()
        ],
    )


@block
def stacked_seeds() -> Lines:
    return table(
        ["classifier", "most that stacking can gain"],
        [
            [name, "{median:.2f} ({min:.2f} to {max:.2f})".format(**case["most_gain"])]
            for name, case in read("stacked_seeds")["cases"].items()
        ],
    )


@block
def cost_model() -> Lines:
    content = read("cost_model")
    steps = content["calibration"]["32"]["evaluations_per_image"]
    return table(
        ["job", "pixels", "cache", "hours of one core", "of 64 cores", "of 64 cores, 4 steps"],
        [
            [
                f"{name} ({row['images']:,} images)",
                f"{row['side']} x {row['side']}",
                f"{row['cache_gb']:.3g} GB",
                number(row["device_hours"]),
                number(content["64 cores"][name]["hours"]),
                number(content["64 cores"][name]["hours"] * 4 / steps),
            ]
            for name, row in content["one core"].items()
        ],
    )


@block
def cost_methods() -> Lines:
    return table(
        ["method", "images", "evaluations of each", "estimate", "taken", "estimate / taken"],
        [
            [
                name,
                f"{row['images']:,}",
                f"{row['evaluations_per_image']:.3g}",
                f"{row['estimated_seconds']['median']:.1f} s",
                f"{row['seconds']['median']:.1f} s",
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**row["estimate_to_truth"]),
            ]
            for name, row in read("cost_methods")["methods"].items()
        ],
    )


@block
def newcomer() -> Lines:
    content = read("newcomer")
    steps = content["steps"]
    names = {
        "environment": "a new environment",
        "install": "`pip install` of the wheel and its {packages} packages "
        "({gigabytes:.1f} GB with the CUDA build of PyTorch)".format(**content["installed"]),
        "first import": "`import synthaug`",
        "cache import": "`synthaug cache import` of 600 images",
        "audit": "their audit against 600 real and 600 held-out images",
        "first batch": "a script up to its first mixed batch",
    }
    return table(
        ["step", "processor seconds", "seconds by the clock of a busy machine"],
        [
            [text, number(steps[k]["processor_seconds"]), number(steps[k]["seconds"])]
            for k, text in names.items()
        ],
    )


@block
def adoption() -> Lines:
    return table(
        ["framework", "lines added", "lines changed", "of"],
        [
            [name, str(row["added"]), str(row["removed"]), str(row["of"])]
            for name, row in read("adoption")["lines"].items()
        ],
    )


@block
def soak_files() -> Lines:
    return table(
        ["subject", "files", "refused", "used correctly", "faults"],
        [
            [
                name,
                str(row["seeds"]),
                str(row["refused"]),
                str(row["used"]),
                str(len(row["faults"])),
            ]
            for name, row in read("soak")["files"].items()
        ],
    )


@block
def soak_kills() -> Lines:
    return table(
        ["command", "runs", "kills", "faults"],
        [
            [f"`{name}`", str(row["trials"]), str(row["kills"]), str(len(row["faults"]))]
            for name, row in read("soak")["kills"].items()
        ],
    )


@block
def soak_races() -> Lines:
    return table(
        ["test", "orders", "faults"],
        [
            [name, str(row["tests"]), str(row["faults"])]
            for name, row in read("soak")["races"]["tests"].items()
        ],
    )


# Every file and its command


@block
def files() -> Lines:
    with (Path(__file__).parent / "commands.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        read(row["file"])  # a file that is named must exist
    return table(
        ["file", "command", "repetitions"],
        [[link(row["file"]), row["command"], row["repetitions"]] for row in rows],
    )


@block
def support_matrix() -> Lines:
    """Tabulates the tasks that each generator can do, and by what means."""
    families = read("support_matrix")["families"]
    ways = list(next(iter(families.values())))
    rows = [
        [family.replace("_", " "), *(answers[way].get("by", "no") for way in ways)]
        for family, answers in families.items()
    ]
    return table(["generator", *ways], rows)


def pages() -> list[Path]:
    """Returns every page that may hold a block."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """Returns the text of a page with every block written anew."""

    def write(place: re.Match[str]) -> str:
        return place[1] + "\n".join(BLOCKS[place[2]]()) + "\n" + place[3]

    return PLACE.sub(write, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a page differs"
    )
    options = parser.parse_args()
    different = False
    for page in pages():
        text = page.read_text()
        if (new := filled(text)) != text:
            different = True
            print("differs" if options.check else "written", page.relative_to(ROOT))
            if not options.check:
                page.write_text(new)
    raise SystemExit(int(options.check and different))


if __name__ == "__main__":
    main()
