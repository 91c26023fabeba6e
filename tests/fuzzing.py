"""Files with random damage, and what may come of them: a right result, or one clear error.

A subject is a good file, or a folder of some, and a function that uses it and raises what it finds
wrong. `trials` damages a copy of one of its files, uses it, and does so again, all of it in another
process: a signal, a memory that fills up and a call that does not come back are faults as well.
"""

import faulthandler
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import synthaug
from synthaug import OnTheFlyDataset, SynthCache, TrainingConfig
from synthaug.errors import CheckpointError, SynthaugError

FORK = multiprocessing.get_context("fork")
PATIENCE = 60.0
"""Seconds that one use may take."""
MEMORY = 2**32
"""Bytes that one use may need, beyond what the process has."""
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        5,
        0.5,
        2**31,
        2**62,
        10**40,
        10_000_000,
        1e308,
        -1e-308,
        "",
        "x",
    ),
    *("\x1b[2J", "../../x", "\ud800", "a" * 5000, "CON", [], {}, [[]], {"": None}, [0] * 1000),
    *(json.loads("[" * 90 + "]" * 90), "\u202egnp.exe"),
)
"""What a value in JSON is replaced with."""


_RAW = re.compile(
    r"unsupported operand|has no attribute|not (subscriptable|iterable|callable)|indices must be"
    r"|'NoneType'|unhashable|positional argument|unexpected keyword|invalid literal|not supported"
    r" between|out of range|be interpreted as|object is not|argument must be|argument of type"
)
"""What Python says where a value is of another type than the code takes for granted."""


@dataclass(frozen=True)
class Subject:
    """What is damaged, and what is done with it."""

    root: Path
    """A good file, or a folder with some."""
    use: Callable[[Path], object]
    """Uses a copy of it; an `AssertionError` says that a result was wrong."""
    pattern: str = "**/*"
    """Which files of the folder are damaged."""
    allowed: tuple[type[BaseException], ...] = (SynthaugError,)
    """Errors that are a clear answer."""


@dataclass
class Outcomes:
    """What came of damaged files."""

    refused: int = 0
    used: int = 0
    faults: list[str] = field(default_factory=list)
    """Seed of the trial, and what happened."""


def trials(subject: Subject, folder: Path, seeds: range) -> Outcomes:
    """Uses one damaged copy per seed, in processes that may die."""
    outcomes = Outcomes()
    at = seeds.start
    while at < seeds.stop:
        current, refused = RawValue("q", at), RawValue("q", 0)
        receive, send = FORK.Pipe(duplex=False)
        child = FORK.Process(
            target=_some, args=(subject, folder, range(at, seeds.stop), current, refused, send)
        )
        child.start()
        send.close()
        before, since = at, time.monotonic()
        while child.is_alive():
            child.join(0.2)
            if current.value != before:
                before, since = current.value, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                child.kill()
                child.join()
                outcomes.faults.append(f"{before}: no end after {PATIENCE:g} s")
        while receive.poll():
            try:
                outcomes.faults.append(receive.recv())
            except EOFError:
                break
        if child.exitcode != 0 and (child.exitcode != -9 or not outcomes.faults):
            outcomes.faults.append(f"{current.value}: exit code {child.exitcode}")
        outcomes.refused += refused.value
        ended = child.exitcode == 0
        at = seeds.stop if ended else current.value + 1
    outcomes.used = len(seeds) - outcomes.refused - len(outcomes.faults)
    return outcomes


def _some(
    subject: Subject, folder: Path, seeds: range, current: Any, refused: Any, send: Any
) -> None:
    faulthandler.enable(open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    warnings.simplefilter("ignore")
    logging.disable()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for seed in seeds:
        current.value = seed
        place = damaged(subject, folder / "damaged", seed)
        try:
            subject.use(place)
        except subject.allowed as error:
            refused.value += 1
            if fault := _unclear(error):
                send.send(f"{seed}: {fault}")
                refused.value -= 1
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            ours = [x for x in last if "/synthaug/" in x.filename] or last
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            send.send(f"{seed}: {type(error).__name__}: {str(error)[:200]!r} at {where}")


def _unclear(error: BaseException) -> str:
    """What an error message lacks."""
    text = str(error)
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if not isinstance(error, SynthaugError) and "/synthaug/" not in where:
        return f"{type(error).__name__} of foreign code, {where}: {text[:200]!r}"
    if not text or len(text) > 5000:
        return f"{type(error).__name__} with a message of {len(text)} characters"
    # Of a checkpoint its libraries know more than we do.
    if (raw := _RAW.search(text)) and not isinstance(error, CheckpointError):
        return f"{type(error).__name__} with a text of Python's, {raw[0]!r}: {text[:300]!r}"
    if any(ord(c) < 32 and c not in "\n\t" for c in text):
        return f"{type(error).__name__} with control characters: {text[:200]!r}"
    return ""


def damaged(subject: Subject, place: Path, seed: int) -> Path:
    """A copy of the subject with one of its files damaged."""
    rng = np.random.default_rng(seed)
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if subject.root.is_file():
        place = place.with_name(f"damaged{subject.root.suffix}")
        others = [subject.root]
        place.write_bytes(damage(subject.root, others, rng))
        return place
    shutil.copytree(subject.root, place)
    files = sorted(p for p in subject.root.glob(subject.pattern) if p.is_file())
    chosen = files[int(rng.integers(len(files)))]
    there = place / chosen.relative_to(subject.root)
    if rng.random() < 0.02:
        there.unlink()
    else:
        there.write_bytes(damage(chosen, files, rng))
    return place


def damage(path: Path, others: list[Path], rng: np.random.Generator) -> bytes:
    """The bytes of a file with random damage."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        return _odd_json(data, rng)
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        _DAMAGES[int(rng.integers(len(_DAMAGES)))](out, rng, others)
    return bytes(out)


def _odd_json(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON in which one value is another, is missing, or has another name."""
    try:
        content = json.loads(data)
    except ValueError:  # lines of JSON
        lines = data.splitlines()
        i = int(rng.integers(len(lines)))
        lines[i] = _odd_json(lines[i], rng)
        return b"\n".join(lines) + b"\n"
    places = [*_places(content)]
    odd = ODD[int(rng.integers(len(ODD)))]
    if not places:
        return json.dumps(odd).encode()
    holder, key = places[int(rng.integers(len(places)))]
    if rng.random() < 0.8:
        holder[key] = odd
    elif isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    else:
        holder.insert(0, odd)
    return json.dumps(content).encode()


def _places(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items) if isinstance(content, dict | list) else ():
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _somewhere(out: bytearray, rng: np.random.Generator) -> int:
    """A place; headers are short, and matter most."""
    size = max(len(out), 1)
    return int(rng.integers(min(size, 512) if rng.random() < 0.4 else size))


def _flip(out: bytearray, rng: np.random.Generator, others: list[Path]) -> None:
    if out:
        out[_somewhere(out, rng)] ^= 1 << int(rng.integers(8))


def _cut(out: bytearray, rng: np.random.Generator, others: list[Path]) -> None:
    del out[_somewhere(out, rng) :]


def _overwrite(out: bytearray, rng: np.random.Generator, others: list[Path]) -> None:
    at, length = _somewhere(out, rng), int(rng.integers(1, 64))
    value = bytes([0] * length), bytes([255] * length), rng.bytes(length)
    out[at : at + length] = value[int(rng.integers(3))]


def _swap(out: bytearray, rng: np.random.Generator, others: list[Path]) -> None:
    length = int(rng.integers(1, 256))
    a, b = sorted((_somewhere(out, rng), _somewhere(out, rng)))
    if b - a >= length:
        out[a : a + length], out[b : b + length] = out[b : b + length], out[a : a + length]


def _splice(out: bytearray, rng: np.random.Generator, others: list[Path]) -> None:
    source = others[int(rng.integers(len(others)))].read_bytes()
    start, length = int(rng.integers(max(len(source), 1))), int(rng.integers(1, 1024))
    at = _somewhere(out, rng)
    out[at : at + int(rng.integers(length))] = source[start : start + length]


def _remove(out: bytearray, rng: np.random.Generator, others: list[Path]) -> None:
    at = _somewhere(out, rng)
    del out[at : at + int(rng.integers(1, 256))]


_DAMAGES = (_flip, _flip, _cut, _overwrite, _swap, _splice, _remove)

# What is damaged


def _cache(folder: Path, encoding: str = "raw") -> Subject:
    from synthaug import Plan

    pixels = np.random.default_rng(5).integers(0, 256, (12, 3, 8, 8), np.uint8)
    plan = Plan.build(
        [6, 6], classes=("a", "b"), settings={}, seed=0, parameters={"strength": [0.5, 1.0]}
    )
    manifest = {"recipe": {"synthesizer": "Noise", "settings": {}, "weights": {"unet": "ab"}}}
    made = SynthCache.create(
        folder / "c.h5", plan, image_shape=(3, 8, 8), manifest=manifest, encoding=encoding
    )
    made.write(range(11), torch.from_numpy(pixels[:11]))
    made.withdraw([4])

    if encoding.startswith("jpeg"):  # what it lost is lost
        pixels[made.done] = made.read(np.flatnonzero(made.done)).numpy()

    def use(path: Path) -> None:
        cache = SynthCache(path)
        assert cache.plan_digest == made.plan_digest
        bad = set(cache.verify().tolist())
        for row in range(12):
            if row not in bad and cache.done[row]:
                assert np.array_equal(cache.read([row])[0].numpy(), pixels[row])
        synthaug.caches.info(cache)

    return Subject(made.path, use)


def _plan(folder: Path) -> Subject:
    """A plan on disk: what a cache holds before its images are drawn."""
    from synthaug import Plan

    rng = np.random.default_rng(6)
    plan = Plan.build(
        [600, 400],
        classes=("a", "b"),
        settings={"eta": 0.5},
        seed=3,
        parameters={"strength": rng.random(7).tolist()},
        sources=[np.arange(5), np.arange(5, 9)],
        source_keys=rng.integers(1, 2**60, 9, dtype=np.uint64),
    )
    made = SynthCache.create(folder / "plan.h5", plan, image_shape=(1, 2, 2), manifest={})

    def use(path: Path) -> None:
        read = SynthCache(path).plan
        if read.digest == plan.digest:
            for name in ("label", "seed", "source", "source_key", "variant", "strength"):
                assert np.array_equal(read[name], plan[name]), name
        else:  # another plan, which says so: a job that goes on with ours is refused
            with pytest.raises(SynthaugError):
                SynthCache.open_for_writing(path, plan, image_shape=(1, 2, 2), manifest={})
            raise SynthaugError("it holds another plan")

    return Subject(made.path, use)


def _training(folder: Path) -> Subject:
    """A training to go on with."""
    from synthaug import ClassConditional
    from synthaug.images import LabeledImages

    pixels = np.random.default_rng(7).integers(0, 256, (8, 1, 8, 8), np.uint8)
    images = LabeledImages(torch.from_numpy(pixels), np.arange(8) % 2, ("a", "b"))
    config = TrainingConfig(steps=3, batch_size=4, device="cpu", checkpoint_seconds=0.0)

    def weights(path: Path) -> dict[str, torch.Tensor]:
        model, _ = ClassConditional.fit(images, path, config=config, channels=8, progress=False)
        state: dict[str, torch.Tensor] = model.model.network.state_dict()
        return state

    whole = weights(folder / "run")

    def use(path: Path) -> None:
        for name, weight in weights(path).items():
            assert torch.equal(weight, whole[name]), name

    return Subject(folder / "run", use)


def _canaries(folder: Path) -> Subject:
    """Which images of a training were marked."""
    from synthaug.images import LabeledImages
    from synthaug.memorization import CanaryConfig, CanaryPlan, plant

    pixels = np.random.default_rng(8).integers(0, 256, (40, 1, 8, 8), np.uint8)
    images = LabeledImages(torch.from_numpy(pixels), np.arange(40) % 2, ("a", "b"))
    plan = plant(images, CanaryConfig(pairs=1)).plan
    (folder / "canaries").mkdir()
    plan.save(folder / "canaries")

    def use(path: Path) -> None:
        read = CanaryPlan.load(path)
        assert read.digest == plan.digest

    return Subject(folder / "canaries", use)


def _packed(folder: Path) -> Subject:
    """A compressed cache, of which HDF5 reads every image."""
    plain = _cache(folder)
    whole = synthaug.SynthCache(plain.root)
    synthaug.caches.export(whole, folder / "packed.h5", format="hdf5")
    return Subject(folder / "packed.h5", plain.use)


def _hdf5(folder: Path) -> Subject:
    import h5py

    path = folder / "images.h5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(1).integers(0, 256, (20, 3, 8, 8), np.uint8)
        file.create_dataset("images", data=values, chunks=(4, 3, 8, 8), compression="gzip")
        file["labels"] = np.arange(20) % 3
        file.attrs["classes"] = ["a", "b", "c"]

    def use(path: Path) -> None:
        data = synthaug.load_dataset(f"hdf5:{path}")
        read = data.read(range(len(data)))
        assert read.shape == (len(data), *data.image_shape)
        assert len(data.targets) == len(data)
        assert set(data.targets) <= set(range(len(data.classes)))

    return Subject(path, use)


def _images(folder: Path) -> Subject:
    from PIL import Image

    rng = np.random.default_rng(2)
    root = folder / "images"
    for name in ("png", "jpg", "gif", "bmp", "ppm", "tif", "webp"):
        for label in ("a", "b"):
            (root / label).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            image.save(root / label / f"x.{name}")

    def use(path: Path) -> None:
        data = synthaug.load_dataset(f"folder:{path}", channels=3, image_size=16, progress=False)
        assert data.read(range(len(data))).shape == (len(data), 3, 16, 16)

    return Subject(root, use)


def _reports(folder: Path) -> Subject:
    from tests.reports import REPORTS

    made = {name: make() for name, make in REPORTS.items()}
    root = folder / "reports"
    root.mkdir()
    for name, report in made.items():
        report.to_json(root / f"{name}.json")

    def use(path: Path) -> None:
        for name, report in made.items():
            file = path / f"{name}.json"
            if file.exists() and file.read_bytes() == (root / file.name).read_bytes():
                continue  # not the one that is damaged
            read = type(report).from_json(file)
            str(read), repr(read), read._repr_html_(), read.to_frame()
            read.to_html(path / f"{name}.html")

    return Subject(root, use)


def _export(folder: Path) -> Subject:
    """An export in class folders, in which some images are forgotten."""
    from tests.drawing import Shaped, fill, plan_of

    sources = [np.arange(4), [], np.arange(4, 9)]
    plan = plan_of(sources=sources, source_keys=np.arange(1, 10, dtype=np.uint64))
    cache = fill(Shaped(), folder / "export.h5", plan)
    root = folder / "export"
    root.mkdir()
    shutil.copy(cache.path, root / "c.h5")
    for form in ("folder", "webdataset"):
        synthaug.caches.export(cache, root / form, format=form)

    def use(path: Path) -> None:
        told = "\n".join(synthaug.caches.forget([path], [3]).beyond)
        assert not _RAW.search(told), told
        synthaug.caches.forget([path / "c.h5", path / "folder", path / "webdataset"], [3])

    return Subject(root, use, "*/*.[jt]*")


def _parts(folder: Path) -> Subject:
    """A job of shards that was stopped: the whole, some of whose rows are in parts."""
    from tests.drawing import Killed, Shaped, fill, plan_of

    plan, root = plan_of((80, 0, 80)), folder / "parts"
    root.mkdir()
    whole = fill(Shaped(), folder / "drawn.h5", plan)
    with suppress(Killed):
        fill(Shaped(killed_at=150), root / "c.h5", plan, shard="1/1")

    def use(path: Path) -> None:
        cache = fill(Shaped(), path / "c.h5", plan)
        assert cache.done.all()
        assert not len(cache.verify())
        assert torch.equal(cache.read(range(160)), whole.read(range(160)))

    return Subject(root, use, "*.parts/*")


def _tombstones(folder: Path) -> Subject:
    """A cache in which a source is forgotten, and another one with images of it."""
    from tests.drawing import Shaped, fill, plan_of

    keys, root = np.arange(1, 10, dtype=np.uint64), folder / "tombstones"
    root.mkdir()
    sources = [np.arange(4), [], np.arange(4, 9)]
    plans = [plan_of(sources=sources, source_keys=keys, seed=seed) for seed in range(2)]
    for name, plan in zip("ab", plans, strict=True):
        fill(Shaped(), root / f"{name}.h5", plan)
    synthaug.caches.forget([root / "a.h5"], keys[2:5])
    buried = np.sort(SynthCache(root / "a.h5").tombstones)

    def use(path: Path) -> None:
        first = SynthCache(path / "a.h5")
        live = OnTheFlyDataset(
            Shaped(), plans[0], size=4, batch_size=2, cache=first.path, background=False
        )
        live.read(range(4))
        assert not np.isin(plans[0]["source_key"][live.rows()], keys[2:5]).any()
        merged = synthaug.caches.merge([first.path, path / "b.h5"], path / "m.h5")
        assert np.array_equal(np.sort(first.tombstones), buried)
        gone = np.isin(merged.plan["source_key"], keys[2:5])
        assert not merged.done[gone].any()

    return Subject(root, use, "a.h5")


def _features(folder: Path) -> Subject:
    """Features that a network computed, kept in a file."""
    from synthaug.features import TorchModule, extract

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    extractor = TorchModule(network, name="linear", preprocess=lambda x: x.float())
    pixels = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8)
    root = folder / "features"
    values = extract(extractor, pixels, features_dir=root)

    def use(path: Path) -> None:
        assert np.array_equal(extract(extractor, pixels, features_dir=path), values)
        synthaug.caches.forget([path], [1])

    return Subject(root, use)


def _arrays(folder: Path) -> Subject:
    """Files of images and of features that are audited."""
    import h5py

    from synthaug._audit.inputs import read_set

    root, rng = folder / "arrays", np.random.default_rng(9)
    root.mkdir()
    images = rng.integers(0, 256, (5, 3, 4, 4), np.uint8)
    np.save(root / "images.npy", images)
    np.save(root / "features.npy", rng.random((5, 3)))
    np.savez(root / "plain.npz", images=images, labels=np.arange(5))
    np.savez_compressed(root / "packed.npz", features=rng.random((5, 3)))
    with h5py.File(root / "features.h5", "w") as file:
        file["features"] = rng.random((5, 3))

    def use(path: Path) -> None:
        for file in sorted(path.iterdir()):
            if file.read_bytes() != (root / file.name).read_bytes():
                read = read_set(file, "real", progress=False)
                assert len(read.samples) == len(read.keys)

    return Subject(root, use, allowed=(SynthaugError, ValueError, TypeError))


def _inverting(folder: Path) -> Subject:
    """An inversion to go on with, and its table, of which images are forgotten."""
    from tests.tiny.inversions import Real, fitted

    root = folder / "inverting"
    whole = fitted(root, Real(), checkpoint_seconds=0.0, block_size=3)

    def use(path: Path) -> None:
        table = fitted(path, Real(), checkpoint_seconds=0.0, block_size=3)
        assert np.array_equal(table.keys, whole.keys)
        for update, embeddings in whole.snapshots.items():
            assert torch.equal(table.snapshots[update], embeddings)
        synthaug.caches.forget([path], whole.keys[:1])

    return Subject(root, use)


def _signing(folder: Path) -> Subject:
    """What an export is signed with."""
    from synthaug.caches import ContentCredentials, export
    from tests.certificates import write_certificates
    from tests.drawing import Shaped, fill, plan_of

    cache, root = fill(Shaped(), folder / "c.h5", plan_of((1, 0, 0))), folder / "signing"
    root.mkdir()
    write_certificates(root)
    for name in ("authority.pem", "other.pem"):
        (root / name).unlink()

    def use(path: Path) -> None:
        signed_by = ContentCredentials(path / "chain.pem", path / "key.pem")
        export(cache, path / "out", format="folder", credentials=signed_by)

    return Subject(root, use)


def _searched(folder: Path) -> Subject:
    """The folder of a search that has ended: its audits, selections, costs and runs."""
    from tests import searches
    from tests.audits import measure_no_audit, shorten

    patch = pytest.MonkeyPatch()
    measure_no_audit(patch)
    shorten(patch)
    config = replace(
        searches.QUICK,
        targets=("random", "difficult", "selected"),
        final_seeds=2,
        rounds=1,
        classifiers=replace(searches.QUICK.classifiers, steps=3),
    )

    def search(path: Path) -> Any:
        return searches.search(
            path,
            24,
            recipes={"true": searches.Levels()},
            config=config,
            validation=searches.real(40, 1),
            test=searches.real(40, 2),
        )

    root = folder / "searched"
    whole = search(root)

    def use(path: Path) -> None:
        report = search(path)
        assert (report.chosen, report.share) == (whole.chosen, whole.share)

    return Subject(root, use)


def _served(folder: Path) -> Subject:
    """A log of served images."""
    from synthaug._datasets.log import ServedLog
    from synthaug.mixing import read_log

    log = ServedLog(folder / "served.csv")
    for epoch in range(3):
        log.write(epoch, [*range(9)], [*range(-1, 8)])

    def use(path: Path) -> None:
        read_log(path)
        ServedLog(path).write(0, [1], [2])

    return Subject(log.path, use)


ASKING = ("Pass `classes`", "no embeddings yet")
"""A checkpoint without its own file is none of ours; then somebody else must say more, a clear
answer as well."""


def _checkpoint(layout: str) -> Callable[[Path], Subject]:
    def made(folder: Path) -> Subject:
        root = folder / layout
        load = LAYOUTS[layout](root)

        def use(path: Path) -> None:
            try:
                with torch.inference_mode():
                    draw(load(path))
            except ValueError as error:
                if not any(one in str(error) for one in ASKING):
                    raise
                raise SynthaugError(str(error)) from error

        def draw(synthesizer: Any) -> None:
            if layout == "cold":
                images = torch.zeros((1, *synthesizer.image_shape))
                drawn = synthesizer.degrade_and_restore(images, severity=[0.5], seeds=[0])
            else:
                drawn = synthesizer.draw(synthesizer.plan(per_class=1)[:1])
            assert drawn.shape == (1, *synthesizer.image_shape)

        return Subject(root, use)

    return made


def _class_conditional(path: Path) -> Callable[[Path], Any]:
    from tests.tiny.class_conditional import tiny

    tiny(num_inference_steps=2).save_pretrained(path)
    return lambda folder: synthaug.ClassConditional.from_pretrained(folder, device="cpu")


def _stable_diffusion(path: Path) -> Callable[[Path], Any]:
    from tests.checkpoints import write_stable_diffusion

    write_stable_diffusion(path)
    return lambda folder: synthaug.ClassConditional.from_pretrained(
        folder, classes=["a", "b"], device="cpu", sampler={"num_inference_steps": 2}
    )


def _cold(path: Path) -> Callable[[Path], Any]:
    from tests.tiny.cold import tiny

    tiny().save_pretrained(path)
    return lambda folder: synthaug.ColdDiffusion.from_pretrained(folder, device="cpu")


def _cascade(path: Path) -> Callable[[Path], Any]:
    from tests.tiny.cascades import tiny_cascade

    tiny_cascade().save_pretrained(path)
    return lambda folder: synthaug.Cascade.from_pretrained(folder, device="cpu")


def _low_density(path: Path) -> Callable[[Path], Any]:
    from tests.tiny.low_density import steered

    steered().save_pretrained(path)
    return lambda folder: synthaug.LowDensity.from_pretrained(folder, device="cpu")


def _inversion(path: Path) -> Callable[[Path], Any]:
    from tests.tiny.inversions import learned

    learned().save_pretrained(path)
    return lambda folder: synthaug.DiffusionInversion.from_pretrained(folder, device="cpu")


def _pipeline(path: Path) -> Callable[[Path], Any]:
    """A layout that diffusers draws with, two text encoders, and an adapter of low rank."""
    from safetensors.torch import save_file

    from synthaug.synthesizers import FromPipeline, LoadingConfig
    from tests.tiny_checkpoints import FAMILIES, SMALL

    pipeline = FAMILIES["flux"](path)
    name, layer = next(
        (n, m) for n, m in pipeline.transformer.named_modules() if n.endswith("attn.to_q")
    )
    down, up = torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2)
    name = f"transformer.{name}"
    adapter = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(adapter, path / "adapter.safetensors")
    small: dict[str, Any] = {**SMALL}
    return lambda folder: FromPipeline.from_pretrained(
        folder,
        classes=["a", "b"],
        files=LoadingConfig(lora=str(folder / "adapter.safetensors")),
        **small,
    )


def _adapters(path: Path) -> Callable[[Path], Any]:
    """Adapters alone, and beside them the checkpoint that they belong to."""
    from synthaug.synthesizers import FineTuningConfig
    from tests.checkpoints import write_stable_diffusion
    from tests.tiny.fine_tuning import Real

    write_stable_diffusion(path / "base")
    synthaug.ClassConditional.fine_tune(
        path / "base",
        Real(3),
        path / "adapters",
        config=TrainingConfig(steps=1, batch_size=2, device="cpu"),
        adaptation=FineTuningConfig(lora_rank=1),
        progress=False,
    )
    for name in ("checkpoint", "checkpoint-previous"):
        shutil.rmtree(path / "adapters" / name, ignore_errors=True)

    def load(folder: Path) -> Any:
        record = folder / "adapters" / "synthaug.json"
        if record.exists():  # says where the other one is
            text = record.read_bytes().replace(os.fsencode(path), os.fsencode(folder))
            record.write_bytes(text)
        return synthaug.ClassConditional.from_pretrained(
            folder / "adapters", device="cpu", sampler={"num_inference_steps": 2}
        )

    return load


LAYOUTS: Mapping[str, Callable[[Path], Callable[[Path], Any]]] = {
    "class_conditional": _class_conditional,
    "stable_diffusion": _stable_diffusion,
    "cold": _cold,
    "cascade": _cascade,
    "low_density": _low_density,
    "inversion": _inversion,
    "pipeline": _pipeline,
    "adapters": _adapters,
}
"""How checkpoints of each kind are written; what comes back loads one."""
SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "cache": _cache,
    "compressed cache": _packed,
    "cache of PNG": lambda folder: _cache(folder, "png"),
    "cache of WebP": lambda folder: _cache(folder, "webp"),
    "cache of JPEG": lambda folder: _cache(folder, "jpeg:90"),
    "plan": _plan,
    "HDF5 images": _hdf5,
    "image files": _images,
    "reports": _reports,
    "plan of canaries": _canaries,
    "training": _training,
    "exports": _export,
    "parts of a job": _parts,
    "tombstones": _tombstones,
    "kept features": _features,
    "arrays": _arrays,
    "inversion": _inverting,
    "certificates": _signing,
    "search": _searched,
    "log of served images": _served,
    **{f"checkpoint: {layout.replace('_', ' ')}": _checkpoint(layout) for layout in LAYOUTS},
}
"""How each subject is made in a folder."""
