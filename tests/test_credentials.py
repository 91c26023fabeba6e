"""Certificates are made on the spot; the library's own reader says what a signature is worth."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from PIL import Image

from synthaug import SynthCache, caches, generate, synthesizers
from synthaug.caches import ContentCredentials
from synthaug.errors import DataError
from tests.certificates import write_certificates
from tests.command_line import fail, succeed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> SynthCache:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8))
    made = synthesizers.Constant(pixels, [0, 1], classes=("cat", "dog"))
    path = tmp_path_factory.mktemp("cache") / "images.h5"
    return generate(made, made.plan(per_class=2, seed=0), path, progress=False)


def read(png: bytes, anchors: Path) -> tuple[str, dict[str, Any]]:
    """How a reader who knows the authority judges a file, and what it says of itself."""
    settings = c2pa.Settings.from_dict(
        {"trust": {"user_anchors": anchors.read_text()}, "verify": {"verify_trust": True}}
    )
    with c2pa.Reader(
        "image/png", io.BytesIO(png), context=c2pa.Context(settings=settings)
    ) as reader:
        said = json.loads(reader.json())
        return reader.get_validation_state(), said["manifests"][said["active_manifest"]]


def test_an_export_is_signed_and_its_pixels_are_the_same(
    tmp_path: Path, cache: SynthCache, files: Path
) -> None:
    signed_by = ContentCredentials(files / "chain.pem", files / "key.pem")
    caches.export(cache, tmp_path / "out", format="folder", credentials=signed_by)
    path = tmp_path / "out" / "dog" / "00000002.png"
    assert path.stat().st_size < 8192
    state, said = read(path.read_bytes(), files / "authority.pem")
    assert state == "Trusted"
    assert said["title"] == path.name
    made, found = (assertion["data"] for assertion in said["assertions"])
    (action,) = made["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert found == {"row": 2, "plan": cache.plan_digest}
    with Image.open(path) as image:
        assert "trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]
        shown = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    assert torch.equal(shown, cache.read([2])[0])

    changed = bytearray(path.read_bytes())
    changed[changed.rindex(b"IDAT") + 8] ^= 1
    assert read(bytes(changed), files / "authority.pem")[0] == "Invalid"


def test_tar_files_hold_signed_images_and_every_row_once(
    tmp_path: Path, cache: SynthCache, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthaug._cache.exporting._PER_TAR", 3)
    signed_by = ContentCredentials(files / "chain.pem", files / "key.pem")
    caches.export(cache, tmp_path / "out", format="webdataset", credentials=signed_by)
    names = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as archive:
            found = [name for name in archive.getnames() if name.endswith(".png")]
            opened = archive.extractfile(found[0])
            assert opened is not None
            assert read(opened.read(), files / "authority.pem")[0] == "Trusted"
            names.append(found)
    assert names == [["00000000.png", "00000001.png", "00000002.png"], ["00000003.png"]]


def test_credentials_that_sign_nothing_are_refused_before_any_work(
    tmp_path: Path, cache: SynthCache, files: Path
) -> None:
    def refused(*given: Any, **settings: Any) -> str:
        with pytest.raises(DataError) as error:
            caches.export(
                cache,
                tmp_path / "out",
                format="folder",
                credentials=ContentCredentials(*given, **settings),
            )
        assert not (tmp_path / "out").exists()
        return str(error.value)

    chain, key = files / "chain.pem", files / "key.pem"
    assert "key must belong to the certificate" in refused(chain, files / "other.pem")
    assert "'ed25519'" in refused(chain, key, algorithm="ed25519")
    assert "missing.pem cannot be read" in refused(chain, files / "missing.pem")
    assert "not be self-signed" in refused(files / "authority.pem", key)
    unknown: Any = "rsa"
    with pytest.raises(ValueError, match="`algorithm` is 'rsa', expected one of es256"):
        ContentCredentials(chain, key, algorithm=unknown)
    signed_by = ContentCredentials(chain, key)
    with pytest.raises(ValueError, match="`credentials` sign PNG files"):
        caches.export(cache, tmp_path / "a.h5", format="hdf5", credentials=signed_by)


def test_the_command_line_signs(tmp_path: Path, cache: SynthCache, files: Path) -> None:
    command = ["cache", "export", cache.path, tmp_path / "out", "--format", "folder"]
    chain = ["--certificates", files / "chain.pem"]
    assert "give both --certificates and --private-key" in fail(2, *command, *chain)
    succeed(*command, *chain, "--private-key", files / "key.pem")
    key: Any = load_pem_private_key((files / "key.pem").read_bytes(), None)
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(secret in path.read_bytes() for path in written)
    (png, *_) = sorted((tmp_path / "out").rglob("*.png"))
    assert read(png.read_bytes(), files / "authority.pem")[0] == "Trusted"
