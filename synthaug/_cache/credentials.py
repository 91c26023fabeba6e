"""Signs exported images with C2PA content credentials: who says that a model made them.

The metadata of an exported image says that a trained model made it, and anybody could have written
that. A credential says it under a certificate, with a digest of the image: a reader sees who
signed, and whether the image was changed since (Coalition for Content Provenance and Authenticity,
technical specification 2).
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from synthaug._support.extras import from_extra, installed_version
from synthaug._support.reading import read_text
from synthaug._types import StrPath
from synthaug.errors import DataError

SigningAlgorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]

MADE_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC digital source type of what a trained model has made."""

_TYPE = "image/png"


@dataclass(frozen=True)
class ContentCredentials:
    """Signs exported images with your certificate. Needs the extra "c2pa".

        signed_by = ContentCredentials("chain.pem", "key.pem", algorithm="es256")
        caches.export(cache, "out", format="folder", credentials=signed_by)

    Every image then says, under the certificate, that a trained model made it, with which version
    of synthaug, and its row and plan digest. That makes each file a few KB larger.
    Signatures are not equal from one export to the next.

    Args:
        certificates: PEM file: the signer's certificate first, then those that vouch for it.
            Readers accept no certificate that vouches for itself.
        private_key: PEM file of the certificate's key, in PKCS #8, without a password. It is read
            when images are signed, and written nowhere.
        algorithm: The key's: "es256", "es384" or "es512" for elliptic curves, "ps256",
            "ps384" or "ps512" for RSA, or "ed25519".
        timestamp_url: Time stamp server, which is asked over the network for every image; by
            default none: then the signature counts as long as the certificate is valid.

    Raises:
        ImportError: The extra "c2pa" is not installed.
        DataError: A file cannot be read, key and certificate do not belong together, or the
            certificate is none for signing. All when images are exported, before any work.
    """

    certificates: StrPath
    private_key: StrPath
    _: KW_ONLY
    algorithm: SigningAlgorithm = "es256"
    timestamp_url: str | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in (known := get_args(SigningAlgorithm)):
            raise ValueError(
                f"`algorithm` is {self.algorithm!r}, expected one of {', '.join(known)}."
            )

    def sign(self, png: bytes, title: str, made_from: dict[str, Any]) -> bytes:
        """Adds a credential to a PNG file.

        Args:
            png: The file.
            title: Its name.
            made_from: The image's row, and the digest of its plan.

        Raises:
            DataError: It cannot be signed.
        """
        return self._signed(png, title, made_from, self._quick)

    def check(self) -> None:
        """Signs an image of one pixel and compares the signature with the certificate; a DataError
        if images could not be signed."""
        pixel = io.BytesIO()
        Image.new("L", (1, 1)).save(pixel, format="PNG")
        self._signed(pixel.getvalue(), "check.png", {}, self._careful)

    def _signed(self, png: bytes, title: str, made_from: dict[str, Any], context: Any) -> bytes:
        agent = {"name": "synthaug", "version": installed_version("synthaug") or "unknown"}
        created = {
            "action": "c2pa.created",
            "digitalSourceType": MADE_BY_MODEL,
            "softwareAgent": agent,
        }
        manifest = {
            "claim_generator_info": [agent],
            "title": title,
            "format": _TYPE,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                {"label": "org.synthaug.made_from", "data": made_from},
            ],
        }
        signed = io.BytesIO()

        def sign() -> None:
            with self._c2pa.Builder(json.dumps(manifest), context=context) as builder:
                builder.sign(self._signer, _TYPE, io.BytesIO(png), signed)

        self._asked(sign)
        return signed.getvalue()

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """Asks the library; its errors become one that says what to look at."""
        try:
            return ask()
        except self._c2pa.C2paError as error:
            raise DataError(
                f"Images cannot be signed with the certificate in {self.certificates} and "
                f"the key in {self.private_key} by {self.algorithm!r}: {error}. The key must "
                "belong to the certificate, both must be for this algorithm, and the "
                "certificate must allow signing and not be self-signed."
            ) from error

    @cached_property
    def _c2pa(self) -> Any:
        with from_extra("c2pa", "Content credentials need c2pa-python", "c2pa"):
            import c2pa
        return c2pa

    @cached_property
    def _signer(self) -> Any:
        chain, key = (self._read(path) for path in (self.certificates, self.private_key))
        info = self._c2pa.C2paSignerInfo(
            alg=self.algorithm.encode(),
            sign_cert=chain,
            private_key=key,
            ta_url=None if self.timestamp_url is None else self.timestamp_url.encode(),
        )
        return self._asked(lambda: self._c2pa.Signer.from_info(info))

    @cached_property
    def _quick(self) -> Any:
        return self._context(verify=False)

    @cached_property
    def _careful(self) -> Any:
        return self._context(verify=True)

    def _context(self, *, verify: bool) -> Any:
        c2pa = self._c2pa
        choices = {
            "builder": {"thumbnail": {"enabled": False}},
            "verify": {"verify_after_sign": verify},
        }
        return c2pa.Context(settings=c2pa.Settings.from_dict(choices))

    @staticmethod
    def _read(path: StrPath) -> bytes:
        try:
            return read_text(Path(path)).encode()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{os.fspath(path)} cannot be read: {error}.") from error
