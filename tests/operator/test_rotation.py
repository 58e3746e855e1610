"""What is written next, so that no certificate runs out and no handshake fails at any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from migcompat_operator import certificates
from migcompat_operator.certificates import Names, Pair, Profile, Usage
from migcompat_operator.rotation import (
    CA,
    CRT,
    KEY,
    NAMES,
    NEXT_CRT,
    NEXT_KEY,
    OLD_CRT,
    PUBLISHED,
    Held,
    Place,
    Plan,
    Times,
    Write,
    plan,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TIMES = Times(server=90 * DAY, client=365 * DAY, authority=3650 * DAY, overlap=7 * DAY)
GOOD_FOR = Names(("localhost", "migcompat-extender.ns.svc"), ("10.96.0.50", "127.0.0.1", "fd00::50"))
NAME = "migcompat"


class Cluster:
    """The four objects, as an API server keeps them."""

    def __init__(self) -> None:
        self.held: dict[Place, Held] = {
            Place.AUTHORITY: Held(),
            Place.SERVER: Held(annotations={NAMES: json.dumps({"dns": GOOD_FOR.dns, "ips": GOOD_FOR.ips})}),
            Place.CLIENT: Held(),
            Place.WEBHOOK: Held(),
        }

    def plan(self, now: datetime, times: Times = TIMES) -> Plan:
        return plan(self.held, times, NAME, now)

    def carry_out(self, write: Write) -> None:
        item = self.held[write.place]
        data = {**item.data, **write.data}
        annotations = {**item.annotations, **write.annotations}
        self.held[write.place] = Held(
            {key: value for key, value in data.items() if value is not None},
            {key: value for key, value in annotations.items() if value is not None},
        )

    def steps(self, now: datetime, times: Times = TIMES) -> Iterator[Write]:
        """Each write, once it is carried out, until nothing is left to write."""
        for _ in range(20):
            write = self.plan(now, times).write
            if write is None:
                return
            self.carry_out(write)
            yield write
        pytest.fail("it does not settle")

    def settle(self, now: datetime, times: Times = TIMES) -> list[Write]:
        return list(self.steps(now, times))

    def put(self, place: Place, **data: bytes) -> None:
        """Somebody changes content; ``tls_crt`` is ``tls.crt``."""
        item = self.held[place]
        named = {key.replace("_", "."): value for key, value in data.items()}
        self.held[place] = Held({**item.data, **named}, item.annotations)

    def leaf(self, place: Place) -> x509.Certificate:
        item = self.held[place]
        return certificates.read_pair(item.get(CRT), item.get(KEY)).certificate

    def bundle(self, place: Place) -> set[x509.Certificate]:
        return set(certificates.read(self.held[place].get(CA)))

    def authority(self) -> Pair:
        item = self.held[Place.AUTHORITY]
        return certificates.read_pair(item.get(CRT), item.get(KEY))


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.settle(START)
    return made


def trusts(bundle: set[x509.Certificate], leaf: x509.Certificate, now: datetime) -> bool:
    return any(
        certificates.is_issued_by(leaf, authority) and not certificates.is_over(authority, now)
        for authority in bundle
    )


def test_empty_secrets_are_filled(cluster: Cluster) -> None:
    authority = cluster.authority()
    assert certificates.is_authority(authority.certificate)
    server, client = cluster.leaf(Place.SERVER), cluster.leaf(Place.CLIENT)
    assert certificates.names_of(server) == GOOD_FOR
    for leaf, usage, life in ((server, Usage.SERVER, 90), (client, Usage.CLIENT, 365)):
        leaf.verify_directly_issued_by(authority.certificate)
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage.value]
        assert not certificates.is_authority(leaf)
        assert leaf.not_valid_before_utc == START - timedelta(hours=1), "clocks may be an hour behind"
        assert leaf.not_valid_after_utc == START + life * DAY
    for place in (Place.SERVER, Place.CLIENT, Place.WEBHOOK):
        assert cluster.bundle(place) == {authority.certificate}
    assert cluster.plan(START) == Plan(
        None,
        {},
        {
            Place.AUTHORITY: START + 3650 * DAY,
            Place.SERVER: START + 90 * DAY,
            Place.CLIENT: START + 365 * DAY,
        },
    )


def test_a_certificate_is_made_anew_at_two_thirds_of_its_life(cluster: Cluster) -> None:
    before = cluster.leaf(Place.SERVER)
    assert cluster.settle(START + 59 * DAY) == []
    (write,) = cluster.settle(START + 61 * DAY)
    assert (write.place, write.renewed) == (Place.SERVER, True)
    after = cluster.leaf(Place.SERVER)
    assert after.public_key() != before.public_key()
    assert certificates.names_of(after) == GOOD_FOR
    assert after.not_valid_after_utc == START + 151 * DAY


def test_other_names_of_the_chart_give_another_certificate(cluster: Cluster) -> None:
    said = {"dns": ["b.example.org", "a.example.org"], "ips": ["FD00:0::50"]}
    cluster.held[Place.SERVER] = Held(cluster.held[Place.SERVER].data, {NAMES: json.dumps(said)})
    assert [write.place for write in cluster.settle(START)] == [Place.SERVER]
    names = certificates.names_of(cluster.leaf(Place.SERVER))
    assert names == Names(("a.example.org", "b.example.org"), ("fd00::50",))


def test_without_the_charts_names_those_of_the_certificate_stay(cluster: Cluster) -> None:
    cluster.held[Place.SERVER] = Held(cluster.held[Place.SERVER].data)
    cluster.settle(START + 61 * DAY)
    assert certificates.names_of(cluster.leaf(Place.SERVER)) == GOOD_FOR


class Clients:
    """Who verifies: each has loaded all files at some time in the last *patience*, and may not have since."""

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience
        self._past: list[tuple[datetime, dict[Place, Held]]] = []

    def look(self, cluster: Cluster, now: datetime) -> None:
        """Every pair of a verifier and a certificate, each as it was then or then, has to fit."""
        self._past.append((now, dict(cluster.held)))
        # What was in force at the beginning of the time of patience, and everything since.
        ago = [index for index, (at, _) in enumerate(self._past) if at <= now - self._patience]
        self._past = self._past[ago[-1] if ago else 0 :]
        states = [held for _, held in self._past]
        for shown in states:
            for verifying in states:
                for leaf, verifier in (
                    (Place.SERVER, Place.CLIENT),
                    (Place.SERVER, Place.WEBHOOK),
                    (Place.CLIENT, Place.SERVER),
                ):
                    pair = certificates.read_pair(shown[leaf].get(CRT), shown[leaf].get(KEY))
                    bundle = set(certificates.read(verifying[verifier].get(CA)))
                    assert not certificates.is_over(pair.certificate, now)
                    assert trusts(bundle, pair.certificate, now), (
                        f"{leaf} is not trusted by {verifier} at {now}"
                    )


def test_over_twenty_years_every_handshake_succeeds_at_every_step(cluster: Cluster) -> None:
    """Each process may be two days late with each file, and the operator may die after any write."""
    clients = Clients(2 * DAY)
    signed: set[x509.Certificate] = set()
    now = START
    while now < START + 20 * 365 * DAY:
        clients.look(cluster, now)
        for _ in cluster.steps(now):
            clients.look(cluster, now)
        signed.add(cluster.authority().certificate)
        assert cluster.plan(now).problems == {}
        now += 3 * DAY
    assert len(signed) >= 3, "it was replaced"
    assert len(cluster.bundle(Place.WEBHOOK)) <= 3, "those before go when they have expired"


def go_over(cluster: Cluster, at: datetime) -> list[Write]:
    """All writes of the replacement of an authority that begins at *at*."""
    return [*cluster.settle(at), *cluster.settle(at + 8 * DAY)]


DUE = START + 2440 * DAY
"""Two thirds of an authority's life are over."""


def test_an_authority_is_replaced_in_steps(cluster: Cluster) -> None:
    first = cluster.authority().certificate
    cluster.settle(DUE - 20 * DAY)
    assert cluster.authority().certificate == first
    assert [write.what for write in cluster.settle(DUE) if write.place is Place.AUTHORITY] == [
        "the next authority",
        "the next authority is in all bundles",
    ]
    coming = certificates.read_pair(
        cluster.held[Place.AUTHORITY].get(NEXT_CRT), cluster.held[Place.AUTHORITY].get(NEXT_KEY)
    ).certificate
    for place in (Place.SERVER, Place.CLIENT, Place.WEBHOOK):
        assert cluster.bundle(place) == {first, coming}
    assert certificates.is_issued_by(cluster.leaf(Place.SERVER), first)
    assert cluster.settle(DUE + 6 * DAY) == []
    writes = cluster.settle(DUE + 8 * DAY)
    assert [write.place for write in writes] == [Place.AUTHORITY, Place.SERVER, Place.CLIENT]
    own = cluster.held[Place.AUTHORITY]
    assert cluster.authority().certificate == coming
    assert certificates.read(own.get(OLD_CRT)) == (first,)
    assert own.data.keys() == {CRT, KEY, OLD_CRT}, "the key of the one before has gone"
    assert PUBLISHED not in own.annotations
    for place in (Place.SERVER, Place.CLIENT):
        assert certificates.is_issued_by(cluster.leaf(place), coming)
        assert cluster.bundle(place) == {first, coming}, "certificates of the first may be in use somewhere"
    cluster.settle(START + 3651 * DAY)
    for place in (Place.SERVER, Place.CLIENT, Place.WEBHOOK):
        assert cluster.bundle(place) == {coming}, "it has expired"


def test_an_operator_that_is_killed_after_any_write_goes_on_where_it_was(cluster: Cluster) -> None:
    """In another process, that is: with nothing but what the objects hold; and a day passes in between."""
    now, first = DUE, cluster.authority().certificate
    while cluster.authority().certificate == first:
        write = cluster.plan(now).write
        if write is not None:
            cluster.carry_out(write)
        now += DAY
        assert now < DUE + 30 * DAY
    cluster.settle(now)
    assert certificates.is_issued_by(cluster.leaf(Place.SERVER), cluster.authority().certificate)


@pytest.mark.parametrize("place", [Place.SERVER, Place.CLIENT, Place.WEBHOOK])
def test_a_bundle_that_loses_the_next_authority_starts_the_overlap_anew(
    cluster: Cluster, place: Place
) -> None:
    before = cluster.held[place].get(CA)
    cluster.settle(DUE)
    cluster.put(place, ca_crt=before)
    writes = cluster.settle(DUE + 6 * DAY)
    assert [write.place for write in writes] == [Place.AUTHORITY, place, Place.AUTHORITY]
    assert cluster.settle(DUE + 8 * DAY) == [], "not all have had the time"
    assert cluster.settle(DUE + 14 * DAY) != []


def test_a_time_of_publishing_that_is_none_or_to_come_counts_from_now(cluster: Cluster) -> None:
    cluster.settle(DUE)
    for wrong in ("yesterday", "2026-01-01T00:00:00", (DUE + 1000 * DAY).isoformat()):
        own = cluster.held[Place.AUTHORITY]
        cluster.held[Place.AUTHORITY] = Held(own.data, {PUBLISHED: wrong})
        (write,) = cluster.settle(DUE)
        assert write.annotations == {PUBLISHED: DUE.isoformat()}


def test_an_authority_that_has_expired_meanwhile_is_replaced_at_once(cluster: Cluster) -> None:
    now = START + 4000 * DAY
    cluster.settle(now)
    authority = cluster.authority().certificate
    assert authority.not_valid_before_utc == now - timedelta(hours=1)
    for place in (Place.SERVER, Place.CLIENT):
        assert certificates.is_issued_by(cluster.leaf(place), authority)
        assert cluster.bundle(place) == {authority}
    assert cluster.bundle(Place.WEBHOOK) == {authority}
    assert cluster.plan(now).problems == {}


def test_certificates_that_have_expired_meanwhile_are_made_anew(cluster: Cluster) -> None:
    cluster.settle(START + 400 * DAY)
    assert cluster.leaf(Place.SERVER).not_valid_after_utc == START + 490 * DAY
    assert cluster.leaf(Place.CLIENT).not_valid_after_utc == START + 765 * DAY


def test_no_certificate_outlives_its_authority(cluster: Cluster) -> None:
    """And while the next one does not sign, what ends with the present one is not made again and again."""
    blocked = Times(90 * DAY, 365 * DAY, 3650 * DAY, overlap=5000 * DAY)
    now = START
    while now < START + 3649 * DAY:
        cluster.settle(now, blocked)
        now += 30 * DAY
    end = cluster.authority().certificate.not_valid_after_utc
    assert cluster.leaf(Place.SERVER).not_valid_after_utc == end
    assert cluster.settle(end - DAY, blocked) == []


def hand_made(issuer: Pair | None = None) -> Pair:
    issuer = issuer or certificates.make_authority("corporate", START, 3650 * DAY)
    return certificates.issue(issuer, Profile("by hand", Usage.SERVER, GOOD_FOR), START, 10 * DAY)


def garbage(cluster: Cluster) -> str:
    cluster.put(Place.SERVER, tls_crt=b"garbage")
    return "is no certificate in PEM"


def swapped_key(cluster: Cluster) -> str:
    cluster.put(Place.SERVER, tls_key=hand_made().pem()[1])
    return "certificate and key do not belong together"


def no_key(cluster: Cluster) -> str:
    cluster.put(Place.SERVER, tls_key=b"")
    return "the key is not readable"


def other_kind_of_key(cluster: Cluster) -> str:
    key = ed25519.Ed25519PrivateKey.generate()
    ours = certificates.read_pair(*hand_made().pem()).certificate
    made = (
        x509.CertificateBuilder(
            ours.issuer,
            ours.subject,
            key.public_key(),
            7,
            ours.not_valid_before_utc,
            ours.not_valid_after_utc,
        )
        .sign(key, None)
        .public_bytes(Encoding.PEM)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    cluster.put(Place.SERVER, tls_crt=made, tls_key=private)
    return "neither RSA nor ECDSA"


def of_another_authority(cluster: Cluster) -> str:
    certificate, key = hand_made().pem()
    cluster.put(Place.SERVER, tls_crt=certificate, tls_key=key)
    return "of an authority that is not ours"


def of_another_authority_of_the_same_name(cluster: Cluster) -> str:
    ours = cluster.authority().certificate
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, private = hand_made(Pair(ours, key)).pem()
    cluster.put(Place.SERVER, tls_crt=certificate, tls_key=private)
    return "of an authority that is not ours"


@pytest.mark.parametrize(
    "somebody",
    [
        garbage,
        swapped_key,
        no_key,
        other_kind_of_key,
        of_another_authority,
        of_another_authority_of_the_same_name,
    ],
)
def test_what_somebody_has_put_there_is_left_alone_and_said(
    cluster: Cluster, somebody: Callable[[Cluster], str]
) -> None:
    words = somebody(cluster)
    before = cluster.held[Place.SERVER]
    writes = go_over(cluster, DUE)
    assert cluster.held[Place.SERVER] == before
    problems = cluster.plan(DUE + 8 * DAY).problems
    assert words in problems[Place.SERVER]
    assert {write.place for write in writes} <= {Place.AUTHORITY, Place.CLIENT, Place.WEBHOOK}
    assert "not replaced while something is wrong" in problems[Place.AUTHORITY]
    assert certificates.is_issued_by(cluster.leaf(Place.CLIENT), cluster.authority().certificate)


@pytest.mark.parametrize("place", [Place.AUTHORITY, Place.SERVER, Place.CLIENT])
def test_a_secret_that_is_not_there_is_said(cluster: Cluster, place: Place) -> None:
    del cluster.held[place]
    assert cluster.settle(START) == []
    assert "the chart makes it" in cluster.plan(START).problems[place]


def test_an_authority_that_is_none_renews_nothing(cluster: Cluster) -> None:
    leaf = hand_made().pem()
    for data, words in (
        ({"tls_crt": leaf[0], "tls_key": leaf[1]}, "may not issue certificates"),
        ({"tls_key": leaf[1]}, "do not belong together"),
        ({"tls_crt": b""}, "there is no certificate"),
        ({"next_crt": leaf[0]}, "the key is not readable"),
        ({"old_crt": b"garbage"}, "is no certificate in PEM"),
    ):
        broken = Cluster()
        broken.held = dict(cluster.held)
        broken.put(Place.AUTHORITY, **data)
        assert broken.settle(DUE) == []
        said = broken.plan(DUE).problems[Place.AUTHORITY]
        assert words in said
        assert "nothing is renewed" in said


def test_authorities_that_somebody_has_added_to_a_bundle_stay(cluster: Cluster) -> None:
    theirs = certificates.make_authority("corporate", START, 5000 * DAY).certificate
    for place in (Place.SERVER, Place.WEBHOOK):
        cluster.put(place, ca_crt=cluster.held[place].get(CA) + certificates.write(theirs))
    assert cluster.settle(START) == []
    go_over(cluster, DUE)
    for place in (Place.SERVER, Place.WEBHOOK):
        assert cluster.bundle(place) >= {theirs, cluster.authority().certificate}


@pytest.mark.parametrize("place", [Place.SERVER, Place.CLIENT, Place.WEBHOOK])
def test_a_bundle_of_garbage_is_left_alone_and_said(cluster: Cluster, place: Place) -> None:
    cluster.put(place, ca_crt=b"garbage")
    go_over(cluster, DUE)
    assert cluster.held[place].get(CA) == b"garbage"
    assert place in cluster.plan(DUE + 8 * DAY).problems


def test_a_bundle_that_is_empty_is_filled(cluster: Cluster) -> None:
    """kube-apiserver's, when the webhook's configuration was applied anew without it."""
    cluster.put(Place.WEBHOOK, ca_crt=b"")
    (write,) = cluster.settle(START)
    assert write.place is Place.WEBHOOK
    assert cluster.bundle(Place.WEBHOOK) == {cluster.authority().certificate}


def test_without_a_webhook_everything_else_is_kept(cluster: Cluster) -> None:
    del cluster.held[Place.WEBHOOK]
    go_over(cluster, DUE)
    assert cluster.plan(DUE + 8 * DAY).problems == {}
    assert certificates.is_issued_by(cluster.leaf(Place.SERVER), cluster.authority().certificate)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("garbage", "annotation migcompat.io/certificate-names"),
        ('{"dns": [], "ips": ["10.96.0"]}', "10.96.0"),
        ('{"dns": ["ä.example.org"], "ips": []}', "no certificate can be made"),
    ],
)
def test_names_that_are_none_are_said_and_the_certificate_stays(
    cluster: Cluster, said: str, words: str
) -> None:
    cluster.held[Place.SERVER] = Held(cluster.held[Place.SERVER].data, {NAMES: said})
    before = cluster.held[Place.SERVER]
    cluster.settle(START + 61 * DAY)
    assert cluster.held[Place.SERVER] == before
    assert words in cluster.plan(START + 61 * DAY).problems[Place.SERVER]


def test_an_empty_server_without_names_is_said() -> None:
    cluster = Cluster()
    cluster.held[Place.SERVER] = Held()
    cluster.settle(START)
    assert "is missing" in cluster.plan(START).problems[Place.SERVER]
    assert cluster.leaf(Place.CLIENT), "the rest is made"
