"""What to write next so that the extender's certificates never run out. No I/O, no clock: both are given.

An authority signs the extender's certificate (shown to kube-apiserver and kube-scheduler) and
kube-scheduler's (shown to the extender). Whoever verifies holds a bundle of authorities. So that no handshake
ever fails:

* A certificate is made anew at two thirds of its life, by the same authority. Nobody has to notice in time.
* An authority is replaced in steps. The next one is made, and put into every bundle; when it has been there
  for the time of overlap, it signs in the place of the one before, whose certificates are good as long as
  they last: the one before stays in the bundles until it expires, and no certificate outlives its authority.

All state is in the objects, and each step is one write to one of them. So it goes on wherever it was left,
and two that do it at a time only make each other's writes fail.

What this did not make is left as it is, and said: a certificate that none of our authorities has signed, a
pair that does not fit together, certificates that somebody has added to a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec
from cryptography import x509

from migcompat_operator import certificates
from migcompat_operator.certificates import Names, Pair, Usage

CRT, KEY, CA = "tls.crt", "tls.key", "ca.crt"
NEXT_CRT, NEXT_KEY, OLD_CRT = "next.crt", "next.key", "old.crt"
"""In the authority's Secret: the authority that comes, and those before whose certificates are still good."""
PUBLISHED = "migcompat.io/next-published"
"""Annotation of the authority's Secret: since when all bundles hold the next one (RFC 3339)."""
NAMES = "migcompat.io/certificate-names"
"""Annotation of the server's Secret, by the chart: the certificate's names, ``{"dns": […], "ips": […]}``."""


class Place(StrEnum):
    """What is kept: three Secrets, and the trust of kube-apiserver in its configuration of the webhook."""

    AUTHORITY = "authority"
    SERVER = "server"
    CLIENT = "client"
    WEBHOOK = "webhook"


LEAVES = (Place.SERVER, Place.CLIENT)


class Times(msgspec.Struct, frozen=True):
    """How long things last."""

    server: timedelta
    client: timedelta
    authority: timedelta
    overlap: timedelta
    """From the next authority's being in all bundles until it signs: all have to load it meanwhile."""


class Held(msgspec.Struct, frozen=True):
    """What a place holds. Of the webhook only ``ca.crt``, its caBundle."""

    data: Mapping[str, bytes] = {}
    annotations: Mapping[str, str] = {}

    def get(self, key: str) -> bytes:
        """Content of *key*, empty when there is none."""
        return self.data.get(key, b"")


class Write(msgspec.Struct, frozen=True):
    """One change of one object; None removes."""

    place: Place
    what: str
    data: dict[str, bytes | None] = {}
    annotations: dict[str, str | None] = {}
    renewed: bool = False
    """Whether a certificate is made by it."""


class Plan(msgspec.Struct):
    """The next write, if any; what is left alone and why; the certificates in use."""

    write: Write | None = None
    problems: dict[Place, str] = {}
    expiry: dict[Place, datetime] = {}


class _Authorities(msgspec.Struct, frozen=True):
    current: Pair
    next: Pair | None
    old: tuple[x509.Certificate, ...]

    @property
    def all(self) -> tuple[x509.Certificate, ...]:
        """Those that sign, will and did, expired or not."""
        coming = (self.next.certificate,) if self.next else ()
        return certificates.union((self.current.certificate,), coming, self.old)

    def trusted(self, now: datetime) -> tuple[x509.Certificate, ...]:
        """What every bundle has to hold."""
        return _unexpired(self.all, now)

    def signed(self, certificate: x509.Certificate) -> bool:
        """Whether one of them has issued it."""
        return any(certificates.is_issued_by(certificate, authority) for authority in self.all)


def plan(held: Mapping[Place, Held], times: Times, name: str, now: datetime) -> Plan:
    """The next write, given what the places hold (those that do not exist left out).

    *name*: what the names of the chart's objects begin with. To be asked again after each write, with what is
    then held.
    """
    made = Plan()
    for place in (Place.AUTHORITY, *LEAVES):
        if place not in held:
            made.problems[place] = "its Secret is not there; the chart makes it (helm upgrade)"
    own = held.get(Place.AUTHORITY)
    if own is None:
        return made
    if not own.get(CRT) and not own.get(KEY):
        new = certificates.make_authority(_authority_name(name), now, times.authority)
        made.write = _pair(Place.AUTHORITY, "the first authority", new, {})
        return made
    try:
        authorities = _read_authorities(own)
    except ValueError as error:
        made.problems[Place.AUTHORITY] = f"{error}; nothing is renewed"
        return made
    made.expiry[Place.AUTHORITY] = authorities.current.certificate.not_valid_after_utc
    ours = _ours(made, held, authorities)
    look = _Look(made.problems, held, ours, own, authorities, times, name, now)
    made.write = look.begin() or look.trust() or look.go_over() or look.renew()
    return made


def _read_authorities(own: Held) -> _Authorities:
    """Raises ValueError: that Secret is not as we or the chart have made it."""
    try:
        current = certificates.read_pair(own.get(CRT), own.get(KEY))
        coming = certificates.read_pair(own.get(NEXT_CRT), own.get(NEXT_KEY)) if own.get(NEXT_CRT) else None
        old = certificates.read(own.get(OLD_CRT))
    except ValueError as error:
        raise ValueError(f"its Secret is not usable: {error}") from error
    if not certificates.is_authority(current.certificate):
        raise ValueError(f"its Secret is not usable: {CRT} may not issue certificates")
    return _Authorities(current, coming, old)


def _ours(made: Plan, held: Mapping[Place, Held], authorities: _Authorities) -> dict[Place, Pair | None]:
    """The leaves that may be changed; None: empty still."""
    found: dict[Place, Pair | None] = {}
    for place in LEAVES:
        item = held.get(place)
        if item is None:
            continue
        if not item.get(CRT) and not item.get(KEY):
            found[place] = None
            continue
        try:
            pair = certificates.read_pair(item.get(CRT), item.get(KEY))
            certificates.read(item.get(CA))
        except ValueError as error:
            made.problems[place] = f"its Secret is not usable, and is left as it is: {error}"
            continue
        made.expiry[place] = pair.certificate.not_valid_after_utc
        if authorities.signed(pair.certificate):
            found[place] = pair
        else:
            made.problems[place] = "its certificate is of an authority that is not ours: it is left as it is"
    return found


class _Look(msgspec.Struct, frozen=True):
    """Everything as it is now. Each method gives its next write, if there is one, in the order of need."""

    problems: dict[Place, str]
    held: Mapping[Place, Held]
    ours: Mapping[Place, Pair | None]
    own: Held
    authorities: _Authorities
    times: Times
    name: str
    now: datetime

    def begin(self) -> Write | None:
        """Make the next authority, when its time has come."""
        current = self.authorities.current.certificate
        if self.authorities.next is not None or not certificates.is_due(current, self.now):
            return None
        coming = certificates.make_authority(_authority_name(self.name), self.now, self.times.authority)
        certificate, key = coming.pem()
        data: dict[str, bytes | None] = {NEXT_CRT: certificate, NEXT_KEY: key}
        return Write(Place.AUTHORITY, "the next authority", data, {PUBLISHED: None}, renewed=True)

    def trust(self) -> Write | None:
        """Put our authorities into a bundle that lacks one, and expired ones out."""
        places = [place for place, pair in self.ours.items() if pair is not None]
        places += [Place.WEBHOOK] if Place.WEBHOOK in self.held else []
        coming, trusted = self.authorities.next, self.authorities.trusted(self.now)
        for place in places:
            try:
                there = certificates.read(self.held[place].get(CA))
            except ValueError as error:
                self.problems[place] = f"its {CA} is left as it is: it {error}"
                continue
            good = _unexpired(there, self.now)
            if set(trusted) <= set(there) and good == there:
                continue
            if coming and coming.certificate not in there and PUBLISHED in self.own.annotations:
                what = "a bundle has lost the next authority"
                return Write(Place.AUTHORITY, what, annotations={PUBLISHED: None})
            return Write(place, "bundle", {CA: certificates.write(*certificates.union(trusted, good))})
        return None

    def go_over(self) -> Write | None:
        """Let the next authority sign, when all who verify have had the time to load it."""
        coming, current = self.authorities.next, self.authorities.current.certificate
        if coming is None:
            return None
        if not certificates.is_over(current, self.now):
            if self.problems:
                self.problems[Place.AUTHORITY] = "it is not replaced while something is wrong with another"
                return None
            since = _time(self.own.annotations.get(PUBLISHED, ""))
            if since is None or since > self.now:
                said: dict[str, str | None] = {PUBLISHED: self.now.isoformat(timespec="seconds")}
                return Write(Place.AUTHORITY, "the next authority is in all bundles", annotations=said)
            if self.now < since + self.times.overlap:
                return None
        # The one that signed until now stays even if it has expired: by it we know what it signed as ours.
        old = certificates.union((current,), _unexpired(self.authorities.old, self.now))
        rest: dict[str, bytes | None] = {
            NEXT_CRT: None,
            NEXT_KEY: None,
            OLD_CRT: certificates.write(*old),
        }
        signs = _pair(Place.AUTHORITY, "the next authority signs", coming, rest)
        return msgspec.structs.replace(signs, annotations={PUBLISHED: None}, renewed=False)

    def renew(self) -> Write | None:
        """Make a certificate that is missing, old, of an earlier authority, or not for the chart's names."""
        for place, pair in self.ours.items():
            try:
                leaf = self._leaf(place, pair)
                there = certificates.read(self.held[place].get(CA))
            except ValueError as error:
                self.problems[place] = f"no certificate can be made: {error}"
                continue
            if leaf is None:
                continue
            bundle = certificates.union(self.authorities.trusted(self.now), _unexpired(there, self.now))
            return _pair(place, "a new certificate", leaf, {CA: certificates.write(*bundle)})
        return None

    def _leaf(self, place: Place, pair: Pair | None) -> Pair | None:
        """A new one, where one is wanted. Raises ValueError."""
        if place is Place.SERVER:
            profile = certificates.Profile(
                f"{self.name}-extender", Usage.SERVER, _names(self.held[place], pair)
            )
            life = self.times.server
        else:
            profile = certificates.Profile("kube-scheduler", Usage.CLIENT)
            life = self.times.client
        authority = self.authorities.current
        if pair is not None and not self._wants(pair.certificate, profile.names, life):
            return None
        return certificates.issue(authority, profile, self.now, life)

    def _wants(self, certificate: x509.Certificate, names: Names, life: timedelta) -> bool:
        authority = self.authorities.current.certificate
        if not certificates.is_issued_by(certificate, authority):
            return True
        if names != Names() and names != certificates.names_of(certificate):
            return True
        longest = min(self.now + life, authority.not_valid_after_utc)
        # What ends with its authority is not made again and again: the next authority makes a new one.
        return certificates.is_due(certificate, self.now) and longest > certificate.not_valid_after_utc


def _names(held: Held, pair: Pair | None) -> Names:
    """What the chart says; without that what the certificate is good for already. Raises ValueError."""
    said = held.annotations.get(NAMES)
    if said is not None:
        try:
            return certificates.canonical(msgspec.json.decode(said, type=Names))
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"annotation {NAMES}: {error}") from error
    if pair is None:
        raise ValueError(f"annotation {NAMES}, which says for which names, is missing")
    return certificates.names_of(pair.certificate)


def _pair(place: Place, what: str, pair: Pair, rest: Mapping[str, bytes | None]) -> Write:
    certificate, key = pair.pem()
    return Write(place, what, {CRT: certificate, KEY: key, **rest}, renewed=True)


def _unexpired(found: tuple[x509.Certificate, ...], now: datetime) -> tuple[x509.Certificate, ...]:
    return tuple(certificate for certificate in found if not certificates.is_over(certificate, now))


def _authority_name(name: str) -> str:
    return f"{name}-extender-ca"


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None
