"""X.509 certificates: reading, judging and issuing them. Pure but for the random keys: times are given.

PEM is what Secrets of type ``kubernetes.io/tls`` hold. Extensions are those of RFC 5280 that Go's and
OpenSSL's strict verification ask for: authority and subject key identifiers, key usage, basic constraints.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import Enum

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE = timedelta(hours=1)
"""How long before its making a certificate is valid already, so that clocks may be that far behind."""
_PEM = serialization.Encoding.PEM
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
"""What helm and deploy/certificates.sh make, and we."""


class Usage(Enum):
    """What a certificate is for."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


class Names(msgspec.Struct, frozen=True):
    """Names and addresses that a server's certificate is good for."""

    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()


class Profile(msgspec.Struct, frozen=True):
    """What a certificate is to say."""

    common: str
    usage: Usage
    names: Names = Names()


class Pair(msgspec.Struct, frozen=True):
    """A certificate and the private key that belongs to it."""

    certificate: x509.Certificate
    key: Key

    def pem(self) -> tuple[bytes, bytes]:
        """Both as PEM, the key as PKCS #8."""
        key = self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return write(self.certificate), key


def read(pem: bytes) -> tuple[x509.Certificate, ...]:
    """All certificates of *pem*, none of nothing. Raises ValueError."""
    if not pem.strip():
        return ()
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except _UNREADABLE as error:
        raise ValueError(f"is no certificate in PEM: {error}") from error


def write(*certificates: x509.Certificate) -> bytes:
    """PEM of *certificates*, one after another."""
    return b"".join(certificate.public_bytes(_PEM) for certificate in certificates)


def read_pair(certificate: bytes, key: bytes) -> Pair:
    """The first certificate of a chain, and its key. Raises ValueError, also when they are no pair."""
    found = read(certificate)
    if not found:
        raise ValueError("there is no certificate")
    try:
        loaded = serialization.load_pem_private_key(key, password=None)
        fits = loaded.public_key() == found[0].public_key()
    except _UNREADABLE as error:
        raise ValueError(f"the key is not readable: {error}") from error
    if not fits:
        raise ValueError("certificate and key do not belong together")
    if not isinstance(loaded, Key):
        raise ValueError("the key is neither RSA nor ECDSA")
    return Pair(found[0], loaded)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may issue others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether *authority*'s key has signed it."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def is_over(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether it has expired."""
    return certificate.not_valid_after_utc <= now


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether two thirds of its life are over."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now <= life / 3


def names_of(certificate: x509.Certificate) -> Names:
    """What it is good for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return Names()
    return Names(
        tuple(sorted(found.get_values_for_type(x509.DNSName))),
        tuple(sorted(map(str, found.get_values_for_type(x509.IPAddress)))),
    )


def canonical(names: Names) -> Names:
    """*names* as :func:`names_of` would tell them. Raises ValueError for an address that is none."""
    addresses = {str(ipaddress.ip_address(address)) for address in names.ips}
    return Names(tuple(sorted(set(names.dns))), tuple(sorted(addresses)))


def make_authority(name: str, now: datetime, life: timedelta) -> Pair:
    """An authority that has signed itself, for *name* (at most 55 characters).

    Its subject is like no other's, so that nobody confuses it with the one before.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"{name} {secrets.token_hex(4)}")
    builder = (
        _builder(subject, subject, key, (now, now + life))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Pair, profile: Profile, now: datetime, life: timedelta) -> Pair:
    """A certificate that ends with its authority at the latest. Raises ValueError for names that are none."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    span = now, min(now + life, issuer.not_valid_after_utc)
    builder = (
        _builder(_subject(profile.common), issuer.subject, key, span)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([profile.usage.value]), critical=False)
        .add_extension(_key_identifier(issuer), critical=False)
    )
    good_for: list[x509.GeneralName] = [x509.DNSName(name) for name in profile.names.dns]
    good_for += [x509.IPAddress(ipaddress.ip_address(address)) for address in profile.names.ips]
    if good_for:
        builder = builder.add_extension(x509.SubjectAlternativeName(good_for), critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def union(*groups: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Each certificate once, in the order they come."""
    return tuple(dict.fromkeys(certificate for group in groups for certificate in group))


def _subject(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As the issuer names its own key, which need not be how we would."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier(
            x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest, None, None
        )
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, span: tuple[datetime, datetime]
) -> x509.CertificateBuilder:
    """Backdated by an hour, or by a tenth of a life that is shorter than ten."""
    now, until = span
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - min(BACKDATE, max(until - now, timedelta()) / 10))
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
