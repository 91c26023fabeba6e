"""Certificates and keys to sign with, made on the spot."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey


def certificate(name: str, key: Key, issuer: str, signer: Key) -> x509.Certificate:
    """A certificate that `issuer` vouches for: of an authority if that is itself."""
    is_authority = name == issuer
    subject, authority = (
        x509.Name(
            [x509.NameAttribute(oid, n) for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)]
        )
        for n in (name, issuer)
    )
    now = datetime.now(timezone.utc)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=authority)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                encipher_only=False,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if not is_authority:
        use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(use, critical=False)
    return builder.sign(signer, hashes.SHA256())


def write_certificates(folder: Path) -> None:
    """Writes `chain.pem`, `key.pem` of its first certificate, `authority.pem`, and `other.pem`, a
    key of somebody else.
    """
    authority, own, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    certificates = [
        certificate("signer", own, "authority", authority),
        certificate("authority", authority, "authority", authority),
    ]
    pem = [one.public_bytes(serialization.Encoding.PEM) for one in certificates]
    (folder / "chain.pem").write_bytes(b"".join(pem))
    (folder / "authority.pem").write_bytes(pem[1])
    for name, key in (("key", own), ("other", other)):
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
