"""Mixed images in the training loops that people have.

Image `i` of the real data has the value `i` everywhere, row `r` of the cache has `100 + r`, so a
batch says which images it holds.
"""

import copy
import importlib
import json
import os
import re
import runpy
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Subset, WeightedRandomSampler
from torchvision import datasets
from torchvision.transforms import v2

import synthaug
from synthaug import MixedDataset, Plan, SynthCache
from synthaug._images.source import ImageSource
from synthaug.images import LabeledImages
from tests import processes

pytestmark = pytest.mark.filterwarnings("ignore")  # frameworks warn of much that is not ours

EXAMPLES = Path(__file__).parents[1] / "examples/frameworks"
FRAMEWORKS = sorted(path.stem.removesuffix("_mixed") for path in EXAMPLES.glob("*_mixed.py"))

CLASSES = ("ant", "bee")
FIRST_ROW = 100
SIZE = 24


@pytest.fixture
def cache(tmp_path):
    plan = Plan.build([20, 20], classes=CLASSES, settings={}, seed=0)
    manifest = {"recipe": {"synthesizer": "test", "settings": {}, "weights": {}}}
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=(3, 4, 4), manifest=manifest)
    rows = np.arange(40)
    values = torch.as_tensor(FIRST_ROW + rows, dtype=torch.uint8)[:, None, None, None]
    cache.write(rows, values.expand(-1, 3, 4, 4).contiguous(), fsync="never")
    return cache


def real_images() -> LabeledImages:
    pixels = torch.arange(SIZE, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return LabeledImages(pixels, np.arange(SIZE) % 2, CLASSES, transform=v2.PILToTensor())


def expected(cache: SynthCache, epoch: int, **options: Any) -> list[int]:
    """The value of every item in an epoch."""
    mixed = MixedDataset(real_images(), cache, audit=None, **options)
    mixed.set_epoch(epoch)
    rows = mixed.synthetic_rows()
    return np.where(rows < 0, np.arange(len(rows)), FIRST_ROW + rows).tolist()


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


# Lightning


@pytest.fixture
def pl():
    return pytest.importorskip("lightning.pytorch")


def make_datamodule(pl: Any, **loader: Any) -> Any:
    kind = loader.pop("kind", DataLoader)

    class Data(pl.LightningDataModule):
        num_classes = 2

        def prepare_data(self):
            self.log: list[Any] = ["prepare"]

        def setup(self, stage):
            self.log.append((stage, self.trainer.max_epochs))
            self.val = real_images()

        def train_dataloader(self):
            sampler = loader.get("sampler")
            settings = {**loader, "sampler": sampler()} if sampler else loader
            return kind(real_images(), batch_size=4, **settings)

        def val_dataloader(self):
            return DataLoader(self.val, batch_size=4)

        def state_dict(self):
            return {"mine": 7}

        def load_state_dict(self, state):
            self.loaded = state

    return Data()


def make_model(pl: Any) -> Any:
    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[tuple[int, list[int]]] = []
            self.validated: list[int] = []

        def training_step(self, batch, batch_idx):
            self.seen.append((self.current_epoch, values(batch[0])))
            return self.weight.sum()

        def validation_step(self, batch, batch_idx):
            self.validated += values(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Model()


def make_trainer(pl: Any, folder: Path, epochs: int = 3, **settings: Any) -> Any:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def of_epoch(model: Any, epoch: int) -> list[int]:
    return [value for e, batch in model.seen if e == epoch for value in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_trains_on_the_mixture_of_each_epoch_and_validates_on_real_images(
    pl, cache, tmp_path, workers
):
    inner = make_datamodule(pl, shuffle=True, num_workers=workers, persistent_workers=bool(workers))
    datamodule = synthaug.lightning.MixedDataModule(inner, cache, audit=None, fraction=0.5)
    model = make_model(pl)
    trainer = make_trainer(pl, tmp_path, enable_checkpointing=False)
    trainer.fit(model, datamodule=datamodule)
    for epoch in range(3):
        assert sorted(of_epoch(model, epoch)) == sorted(expected(cache, epoch, fraction=0.5))
    assert len({tuple(sorted(of_epoch(model, epoch))) for epoch in range(3)}) == 3
    assert model.validated == [*range(SIZE)] * 3
    assert inner.log == ["prepare", ("fit", 3)]


@pytest.mark.parametrize("order", ["in turn", "seeded", "shuffled"])
@pytest.mark.parametrize(
    "when",
    [
        {"every_n_train_steps": 8},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {},
    ],
    ids=["mid-epoch", "epoch end", "after validation"],
)
def test_a_run_that_lightning_resumes_sees_what_it_would_have_seen(
    pl, cache, tmp_path, when, order
):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loaders: dict[str, dict[str, Any]] = {
        "in turn": {},
        "seeded": {"sampler": lambda: synthaug.mixing.SeededSampler(real_images(), seed=5)},
        "shuffled": {"shuffle": True},
    }

    def fit(folder, **settings):
        inner = make_datamodule(pl, kind=stateful.StatefulDataLoader, **loaders[order])
        datamodule = synthaug.lightning.MixedDataModule(inner, cache, audit=None, fraction=0.5)
        saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)
        model = make_model(pl)
        make_trainer(pl, folder, callbacks=[saving]).fit(model, datamodule=datamodule, **settings)
        return model, inner

    whole, _ = fit(tmp_path / "whole")
    saved = sorted((tmp_path / "whole").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
    steps = int(saved[0].stem.split("=")[1])
    assert 0 < steps < len(whole.seen)
    rest, inner = fit(tmp_path / "again", ckpt_path=saved[0])
    assert inner.loaded == {"mine": 7}
    if order == "shuffled":  # anew in each process: the same images in another order
        assert sorted(of_epoch(rest, 2)) == sorted(of_epoch(whole, 2))
    else:
        assert rest.seen == whole.seen[steps:]


def test_lightnings_ddp_gives_batches_of_exact_counts_and_sets_their_epoch(pl, cache, tmp_path):
    mixed = synthaug.MixedDataset(real_images(), cache, audit=None, mode="append", ratio=1.0)

    def loader() -> DataLoader[Any]:
        return DataLoader(mixed, batch_sampler=synthaug.MixedBatchSampler(mixed, 8, 4))

    settings: dict[str, Any] = {"strategy": "ddp", "devices": 1, "enable_checkpointing": False}
    model, environment = make_model(pl), dict(os.environ)
    try:
        make_trainer(pl, tmp_path, epochs=2, **settings).fit(model, loader())
        outside, model = model, make_model(pl)
        mixed.set_epoch(0)
        model.train_dataloader = loader
        make_trainer(pl, tmp_path, epochs=2, **settings).fit(model)
        assert [batch for _, batch in outside.seen] == [batch for _, batch in model.seen]
        with pytest.raises(TypeError, match=r"`mixed` is a sampler: Lightning divides"):
            synthaug.MixedBatchSampler(torch.utils.data.SequentialSampler(mixed))  # type: ignore
    finally:
        torch.distributed.destroy_process_group()
        os.environ.clear()  # Lightning tells other processes by it
        os.environ.update(environment)
    assert [sum(v >= FIRST_ROW for v in batch) for _, batch in model.seen] == [4] * 2 * (SIZE // 4)
    assert of_epoch(model, 0) != of_epoch(model, 1)
    assert mixed.epoch == 1


@pytest.mark.parametrize("order", ["in turn", "shuffled", "seeded"])
def test_lightning_reaches_images_that_are_appended(pl, cache, tmp_path, order):
    inner = make_datamodule(pl, shuffle=order == "shuffled")
    if order == "seeded":
        inner = make_datamodule(
            pl, sampler=lambda: synthaug.mixing.SeededSampler(real_images(), seed=5)
        )
    options = {"mode": "append", "ratio": 0.5}
    datamodule = synthaug.lightning.MixedDataModule(inner, cache, audit=None, **options)
    model = make_model(pl)
    make_trainer(pl, tmp_path, epochs=1, enable_checkpointing=False).fit(
        model, datamodule=datamodule
    )
    wanted, found = expected(cache, 0, **options), of_epoch(model, 0)
    assert (found == wanted) is (order == "in turn")
    assert sorted(found) == sorted(wanted)
    if order == "seeded":
        mixed: Any = datamodule.mixed
        assert found == [wanted[i] for i in synthaug.mixing.SeededSampler(mixed, seed=5)]


def test_lightning_follows_a_ratio_that_grows_from_nothing_if_it_reloads(pl, cache, tmp_path):
    options: dict[str, Any] = {"mode": "append", "ratio": synthaug.mixing.Linear(0.0, 0.5, 2)}
    for reload in (0, 1):
        datamodule = synthaug.lightning.MixedDataModule(
            make_datamodule(pl, shuffle=True), cache, audit=None, **options
        )
        model = make_model(pl)
        trainer = make_trainer(
            pl, tmp_path, enable_checkpointing=False, reload_dataloaders_every_n_epochs=reload
        )
        if not reload:
            with pytest.raises(ValueError, match="`Trainer\\(reload_dataloaders_every_n_epochs=1"):
                trainer.fit(model, datamodule=datamodule)
    trainer.fit(model, datamodule=datamodule)
    for epoch in range(3):
        assert sorted(of_epoch(model, epoch)) == sorted(expected(cache, epoch, **options))


def test_the_loader_keeps_its_settings_and_its_batches(pl, cache):
    batches = BatchSampler(WeightedRandomSampler([1.0] * SIZE, 8), 3, drop_last=True)
    inner = make_datamodule(pl)
    inner.train_dataloader = lambda: DataLoader(
        real_images(), batch_sampler=batches, collate_fn=list, timeout=5, num_workers=1
    )
    datamodule = synthaug.lightning.MixedDataModule(inner, cache, audit=None, fraction=1.0)
    loader = datamodule.train_dataloader()
    assert loader.batch_sampler is batches
    assert (loader.collate_fn, loader.timeout, loader.num_workers) == (list, 5, 1)
    assert loader.dataset is datamodule.mixed


def test_what_cannot_be_mixed_in_lightning_is_refused(pl, cache):
    def mixed(inner, **options):
        return synthaug.lightning.MixedDataModule(inner, cache, audit=None, **options)

    with pytest.raises(TypeError, match=r"is a LabeledImages, expected a Lightning.* and not of"):
        mixed(real_images())
    with pytest.raises(TypeError, match="fractoin"):
        mixed(make_datamodule(pl), fractoin=0.5)
    weighted = make_datamodule(pl, sampler=lambda: WeightedRandomSampler([1.0] * SIZE, SIZE))
    with pytest.raises(ValueError, match="WeightedRandomSampler, which cannot reach"):
        mixed(weighted, mode="append", ratio=1.0).train_dataloader()
    several = make_datamodule(pl)
    several.train_dataloader = lambda: [1, 2]
    with pytest.raises(TypeError, match="gives a list, expected one DataLoader"):
        mixed(several, fraction=0.5).train_dataloader()


def test_attributes_and_copies_are_those_of_the_data_module_inside(pl, cache):
    inner = make_datamodule(pl)
    datamodule = synthaug.lightning.MixedDataModule(inner, cache, audit=None, fraction=0.5)
    assert datamodule.num_classes == 2
    assert copy.deepcopy(datamodule).num_classes == 2
    with pytest.raises(AttributeError, match="num_boxes"):
        _ = datamodule.num_boxes


@pytest.mark.parametrize(
    ("namespace", "name", "library", "extra"),
    [
        ("lightning", "MixedDataModule", "lightning", "lightning"),
        ("huggingface", "SetEpoch", "transformers", "text"),
    ],
)
def test_without_the_library_the_error_names_the_extra(
    monkeypatch, namespace, name, library, extra
):
    for module in [m for m in sys.modules if m.startswith(f"synthaug.{namespace}._")]:
        monkeypatch.delitem(sys.modules, module)
    for module in [library, *(m for m in sys.modules if m.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'synthaug\[{extra}\]'"):
        getattr(getattr(synthaug, namespace), name)


# Hugging Face


@pytest.fixture
def hf():
    return pytest.importorskip("datasets")


def make_table(hf: Any) -> Any:
    real = real_images()
    real.transform = None
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=list(CLASSES))})
    images = {"image": [real[i][0] for i in range(SIZE)], "label": real.targets}
    return hf.Dataset.from_dict(images, features=features)


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """A transform as in Hugging Face's examples: a batch in, a batch with other columns out."""
    pixels = [v2.functional.pil_to_tensor(image) / 1.0 for image in batch["image"]]
    return {"pixel_values": pixels, "labels": batch["label"]}


def test_items_of_datasets_go_through_its_transform_after_they_were_mixed(hf, cache):
    real = make_table(hf).with_transform(to_tensors)
    mixed = synthaug.huggingface.MixedDataset(real, cache, audit=None, fraction=0.5)
    for epoch in range(2):
        mixed.set_epoch(epoch)
        items = mixed.__getitems__(range(SIZE))
        assert [item["labels"] for item in items] == real_images().targets
        images = torch.stack([item["pixel_values"] for item in items])
        assert values(images) == expected(cache, epoch, fraction=0.5)
        assert mixed[3].keys() == real[3].keys()
        torch.testing.assert_close(mixed[3]["pixel_values"], items[3]["pixel_values"])
    assert len(mixed) == SIZE


def test_datasets_that_were_selected_and_have_no_transform_are_mixed_too(hf, cache):
    real = make_table(hf).select([5, 2, 9])
    mixed = synthaug.huggingface.MixedDataset(real, cache, audit=None, fraction=0.0)
    items = mixed.__getitems__(range(3))
    assert [item["image"].getpixel((0, 0))[0] for item in items] == [5, 2, 9]
    assert [item["label"] for item in items] == [1, 0, 1]
    with pytest.raises(TypeError, match="LabeledImages, expected a `datasets"):
        synthaug.huggingface.MixedDataset(real_images(), cache, audit=None, fraction=0.5)


def test_trainer_tells_parts_of_a_mixture_their_epoch_and_leaves_others_alone(hf, cache):
    pytest.importorskip("transformers")
    mixed = synthaug.huggingface.MixedDataset(make_table(hf), cache, audit=None, fraction=0.5)
    for dataset in (Subset(mixed, range(4)), real_images()):
        loader = SimpleNamespace(dataset=dataset)
        state = SimpleNamespace(epoch=2.0)
        synthaug.huggingface.SetEpoch().on_epoch_begin(None, state, None, train_dataloader=loader)
    assert mixed.mixed.epoch == 2


class Recorder(torch.nn.Module):
    """A model for `Trainer` that remembers its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(values(pixel_values))
        return {"loss": self.weight.sum()}


@pytest.mark.parametrize("step", [9, 12], ids=["mid-epoch", "epoch end"])
def test_a_run_that_trainer_resumes_sees_what_it_would_have_seen(hf, cache, tmp_path, step):
    transformers = pytest.importorskip("transformers")
    real = make_table(hf).with_transform(to_tensors)

    def train(**arguments):
        model = Recorder()
        settings = transformers.TrainingArguments(
            str(tmp_path / "runs"),
            num_train_epochs=3,
            per_device_train_batch_size=4,
            save_steps=step,  # columns that only the transform needs stay: the default would fail
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        transformers.Trainer(
            model,
            settings,
            train_dataset=synthaug.huggingface.MixedDataset(real, cache, audit=None, fraction=0.5),
            callbacks=[synthaug.huggingface.SetEpoch()],
        ).train(**arguments)
        return model.seen

    whole = train()
    for epoch in range(3):
        batches = whole[6 * epoch : 6 * (epoch + 1)]
        served = [value for batch in batches for value in batch]
        assert sorted(served) == sorted(expected(cache, epoch, fraction=0.5))
    rest = train(resume_from_checkpoint=str(tmp_path / f"runs/checkpoint-{step}"))
    assert rest == whole[step:]


# timm


def test_labels_and_classes_of_timm_are_known_without_reading_images(cache, tmp_path):
    timm_data = pytest.importorskip("timm.data")
    real = real_images()
    for i in range(SIZE):
        image, label = v2.functional.to_pil_image(real[i][0]), CLASSES[real[i][1]]
        (tmp_path / "real" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "real" / label / f"{i:02}.png")
    images = timm_data.create_dataset("", root=str(tmp_path / "real"), is_training=True)
    mixed = MixedDataset(images, cache, audit=None, fraction=0.0)
    assert mixed.classes == CLASSES
    assert mixed.targets == [label for _, label in (images[i] for i in range(SIZE))]
    # The real ones, in the order of their files, through a transform that is assigned later.
    mixed.transform = v2.PILToTensor()
    assert values(torch.stack([mixed[i][0] for i in range(SIZE)])) == [
        *range(0, SIZE, 2),
        *range(1, SIZE, 2),
    ]
    labels = ImageSource.open(ReadsNothing(images.reader)).labels
    assert labels.tolist() == mixed.targets


class ReadsNothing:
    """timm's data set of images, if it could not open any."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        raise AssertionError(f"image {index} is opened")


# The examples


@pytest.fixture(scope="module")
def example_data(short_audits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(EXAMPLES / "make_data.py"))
    return folder


@pytest.fixture
def in_example_data(example_data, monkeypatch):
    monkeypatch.chdir(example_data)
    return example_data


def choices_of_examples() -> list[list[int]]:
    """The rows that each of two epochs serves."""
    mixed = MixedDataset(
        datasets.ImageFolder("data/train"),
        SynthCache("synthetic.h5"),
        audit=synthaug.AuditReport.from_json("audit.json"),
        fraction=0.5,
    )
    chosen = []
    for epoch in range(2):
        mixed.set_epoch(epoch)
        chosen.append(mixed.synthetic_rows().tolist())
    return chosen


@pytest.mark.xdist_group("forkserver")  # data are made, and audited, once
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_example_serves_the_mixture_of_every_epoch(name, in_example_data, monkeypatch):
    for module in {"pytorch": [], "huggingface": ["datasets", "transformers"]}.get(name, [name]):
        pytest.importorskip(module)
    if name == "huggingface":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", in_example_data / "hf")
    served: list[int] = []
    read = SynthCache.read

    def recorded(cache, rows):
        served.extend(np.asarray(rows).tolist())
        return read(cache, rows)

    monkeypatch.setattr(SynthCache, "read", recorded)
    runpy.run_path(str(EXAMPLES / f"{name}_mixed.py"))
    wanted = [row for rows in choices_of_examples() for row in rows if row >= 0]
    assert sorted(served) == sorted(wanted)


_RANK = """
import json, runpy, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from synthaug import MixedDataset

served = []
items = MixedDataset.__getitems__
def recorded(mixed, indices):
    rows = mixed.synthetic_rows(indices).tolist()
    served.extend(zip([mixed.epoch] * len(rows), map(int, indices), rows))
    return items(mixed, indices)
MixedDataset.__getitems__ = recorded
names = runpy.run_path(sys.argv[1])
found = {"example": list(served)}

# The sampler that Trainer asks for, which keeps `set_epoch` from the data set.
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
served.clear()
set_seed(0)  # or each process has an order of its own
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
loader = accelerator.prepare(DataLoader(names["train"], batch_size=16, shuffle=True))
for epoch in range(2):
    loader.set_epoch(epoch)
    names["train"].set_epoch(epoch)
    for _ in loader: pass
found["seedable"] = served
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.mark.xdist_group("forkserver")
def test_two_processes_share_the_mixture_of_one(in_example_data):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        processes.start(
            _RANK,
            EXAMPLES / "accelerate_mixed.py",
            f"rank{r}.json",
            environment={**common, "ACCELERATE_USE_CPU": "true", "RANK": r, "LOCAL_RANK": r},
        )
        for r in range(2)
    ]
    ended = [rank.wait() for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], ended
    found = [json.loads(Path(f"rank{r}.json").read_text()) for r in range(2)]
    wanted = [
        [epoch, index, row]
        for epoch, rows in enumerate(choices_of_examples())
        for index, row in enumerate(rows)
    ]
    for way in ("example", "seedable"):
        assert len(found[0][way]) == len(found[1][way])
        assert sorted(found[0][way] + found[1][way]) == wanted


# The page


def adoption() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES.parents[1] / "benchmarks"))
        return importlib.import_module("adoption")


def test_the_page_shows_what_changes_in_the_examples():
    page = (EXAMPLES.parents[1] / "docs/frameworks.md").read_text()
    shown = re.findall(r"^```diff\n(.*?)\n```", page, re.M | re.S)
    assert sorted(shown) == sorted("\n".join(adoption().difference(name)) for name in FRAMEWORKS)


def test_the_page_counts_the_lines_of_the_examples():
    page = (EXAMPLES.parents[1] / "docs/frameworks.md").read_text()
    counts = re.findall(r"frameworks/(\w+)_mixed.py\) \| (\d+) \| (\d+) \| (\d+) \|", page)
    assert {name: list(map(int, numbers)) for name, *numbers in counts} == {
        name: list(adoption().changed(name).values()) for name in FRAMEWORKS
    }
