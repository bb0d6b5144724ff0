"""The trust sets of a node and the file they are kept in."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)

from pilotfleet.errors import ConfigError, StorageError
from pilotfleet.node.trust import (
    EXPIRY_S,
    MAX_OUTGOING,
    MAX_PENDING,
    MAX_PENDING_PER_SOURCE,
    Pending,
    Trusted,
    TrustStore,
    clean_justification,
)
from pilotfleet.node.trustfile import TrustWriter
from pilotfleet.protocol.identity import decode_key_text

_FILE = Path(__file__).parents[1] / "vectors" / "services.json"
VECTOR: dict[str, Any] = json.loads(_FILE.read_text())["handshake"]["trust_json_v1_18"]
KEY = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
OTHER_KEY = "SLP9TUsRqbmuqfAmZJrlfbDGV/8AwrRpqauYCbYBpu4="
WALL = 1795355900.0
"""Shortly before the entries of the recorded file run out."""


def _load(path: Path, tree: object) -> TrustStore:
    path.write_bytes(msgspec.json.encode(tree))
    return TrustStore.load(path, wall=WALL)


def _ask(store: TrustStore, node: int, *, source: int = 0, wall: float = WALL) -> bool:
    return store.add_pending(
        node, public_key=KEY, justification="hi", source=source or node, wall=wall
    )


# The file


def test_the_recorded_file_is_read_and_written_unchanged(tmp_path: Path) -> None:
    store = _load(tmp_path / "trust.json", VECTOR)

    assert store.trusted[2] == Trusted(KEY, 1795355685, True)
    assert store.trusted[9] == Trusted("", 1795355685, False, 3)
    assert store.pending[77] == Pending(KEY, "hi", 1795355881, 1)
    assert store.is_revoked(4, WALL)
    assert store.is_asked(3, WALL)
    assert json.loads(store.encode(wall=WALL)) == VECTOR


def test_an_empty_store_writes_null() -> None:
    assert TrustStore().encode(wall=WALL) == b'{\n  "trusted": null\n}\n'


def test_a_file_of_an_old_release_is_read(tmp_path: Path) -> None:
    row = {"node_id": 5, "received_at": "2026-11-22T13:54:11Z", "public_key": KEY}
    store = _load(tmp_path / "trust.json", {"trusted": None, "pending": [row]})
    assert store.pending[5] == Pending(KEY, "", 1795355651, 5)


def test_entries_without_a_readable_time_are_skipped(tmp_path: Path) -> None:
    rows = [
        {"node_id": 5, "approved_at": "yesterday"},
        {"node_id": 6, "approved_at": "2026-11-22T13:54:11"},
        {"node_id": 7, "approved_at": "2026-11-22T14:54:11+01:00"},
    ]
    store = _load(tmp_path / "trust.json", {"trusted": rows})
    assert set(store.trusted) == {7}


def test_what_ran_out_is_not_read(tmp_path: Path) -> None:
    tree = {
        "trusted": None,
        "revoked": [{"node_id": 4, "until": "2026-11-22T13:00:00Z"}],
        "outgoing": [{"node_id": 3, "sent_at": "2026-10-01T00:00:00Z"}],
    }
    store = _load(tmp_path / "trust.json", tree)
    assert not store.is_revoked(4, WALL)
    assert store.outgoing == {}


def test_a_missing_file_is_an_empty_store(tmp_path: Path) -> None:
    assert TrustStore.load(tmp_path / "trust.json", wall=WALL).trusted == {}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"trusted":{}}', b'{"trusted":[{}]}', b"\xff"]
)
def test_a_damaged_file_is_refused_by_name_and_kept(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "trust.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"trust\.json is not a trust file"):
        TrustStore.load(path, wall=WALL)
    assert path.read_bytes() == data


@given(data=st.binary(max_size=200))
def test_garbage_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.json"
    path.write_bytes(data)
    try:
        TrustStore.load(path, wall=WALL)
    except ConfigError:
        return


def test_a_folder_in_its_place_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        TrustStore.load(tmp_path, wall=WALL)


# The rules


def test_trust_is_bound_to_its_key() -> None:
    store = TrustStore()
    store.trust(2, wall=WALL, public_key=KEY, mutual=True)
    assert store.is_trusted(2)
    assert store.is_trusted(2, decode_key_text(KEY))
    assert not store.is_trusted(2, decode_key_text(OTHER_KEY))
    assert store.bind_key(2, KEY)
    assert not store.bind_key(2, OTHER_KEY)
    assert not store.is_trusted(2)


def test_an_empty_key_takes_the_first_one_seen() -> None:
    store = TrustStore()
    store.trust(2, wall=WALL, mutual=True)
    assert store.is_trusted(2, decode_key_text(OTHER_KEY))
    assert store.bind_key(2, KEY)
    assert not store.is_trusted(2, decode_key_text(OTHER_KEY))
    assert not store.bind_key(3, KEY)


def test_a_key_that_was_rotated_is_taken_over() -> None:
    store = TrustStore()
    store.trust(7, wall=WALL, public_key=KEY, mutual=True)
    assert store.contradicts(7, decode_key_text(OTHER_KEY))
    assert not store.contradicts(8, decode_key_text(OTHER_KEY))
    assert store.bind_key(7, OTHER_KEY, rotated=True)
    assert store.trusted[7] == Trusted(OTHER_KEY, int(WALL), mutual=True)
    assert not store.contradicts(7, decode_key_text(OTHER_KEY))


def test_an_accept_makes_trust_mutual_and_keeps_what_is_known() -> None:
    store = TrustStore()
    store.trust(7, wall=WALL, public_key=KEY, mutual=False, network=3)
    store.accepted(7, "")
    assert store.trusted[7] == Trusted(KEY, int(WALL), mutual=True, network=3)


def test_trust_ends_the_requests_between_the_two() -> None:
    store = TrustStore()
    _ask(store, 2)
    store.ask(2, WALL)
    store.trust(2, wall=WALL, mutual=True)
    assert store.pending == {}
    assert store.outgoing == {}


def test_pending_requests_are_bounded_by_source_and_in_all() -> None:
    store = TrustStore()
    accepted = [_ask(store, 100 + number, source=1) for number in range(20)]
    assert accepted.count(True) == MAX_PENDING_PER_SOURCE
    for source in range(2, 40):
        for number in range(MAX_PENDING_PER_SOURCE):
            _ask(store, source * 1000 + number, source=source)
    assert len(store.pending) == MAX_PENDING
    assert _ask(store, 100, source=1), "a repeated request replaces its entry"


def test_pending_requests_run_out_after_thirty_days() -> None:
    store = TrustStore()
    _ask(store, 2)
    assert 2 in store.live_pending(WALL + EXPIRY_S - 1)
    version = store.version
    assert store.live_pending(WALL + EXPIRY_S) == {}
    assert store.version > version


def test_the_oldest_outgoing_request_is_forgotten() -> None:
    store = TrustStore()
    for node in range(1, MAX_OUTGOING + 2):
        store.ask(node, WALL)
    assert len(store.outgoing) == MAX_OUTGOING
    assert not store.is_asked(1, WALL)
    assert store.is_asked(2, WALL)
    assert not store.is_asked(2, WALL + EXPIRY_S)


def test_a_revocation_holds_for_five_minutes_or_until_we_ask() -> None:
    store = TrustStore()
    assert not store.revoke(2, WALL)
    store.trust(2, wall=WALL, mutual=True)
    assert store.revoke(2, WALL)
    assert store.is_revoked(2, WALL + 299)
    assert not store.is_revoked(2, WALL + 300)
    store.ask(2, WALL)
    assert not store.is_revoked(2, WALL)


def test_a_justification_is_cleaned_and_cut() -> None:
    assert clean_justification("hi\x07\n there") == "hi there"
    assert clean_justification("ä" * 2000) == "ä" * 512
    assert len(clean_justification("x" + "ä" * 2000).encode()) == 1023


class Sets(RuleBasedStateMachine):
    """Whatever happens, the sets keep their bounds and survive the file."""

    nodes = st.integers(1, 40)

    def __init__(self) -> None:
        super().__init__()
        self.store = TrustStore()
        self.wall = WALL

    @rule(seconds=st.sampled_from([1, 200, EXPIRY_S // 2]))
    def time_passes(self, seconds: int) -> None:
        self.wall += seconds

    @rule(node=nodes, source=st.integers(1, 3))
    def request_arrives(self, node: int, source: int) -> None:
        _ask(self.store, node, source=source, wall=self.wall)

    @rule(node=nodes)
    def we_ask(self, node: int) -> None:
        self.store.ask(node, self.wall)
        assert self.store.is_asked(node, self.wall)

    @rule(node=nodes, mutual=st.booleans(), key=st.sampled_from(["", KEY]))
    def trust(self, node: int, mutual: bool, key: str) -> None:
        self.store.trust(node, wall=self.wall, public_key=key, mutual=mutual)
        assert self.store.is_trusted(node)

    @rule(node=nodes, key=st.sampled_from([KEY, OTHER_KEY]))
    def key_is_seen(self, node: int, key: str) -> None:
        if self.store.bind_key(node, key):
            assert self.store.is_trusted(node, decode_key_text(key))
        else:
            assert not self.store.is_trusted(node)

    @rule(node=nodes)
    def revoke(self, node: int) -> None:
        self.store.revoke(node, self.wall)
        assert not self.store.is_trusted(node)
        assert not self.store.is_asked(node, self.wall)

    @invariant()
    def a_trusted_node_is_not_pending(self) -> None:
        for source in (1, 2, 3):
            rows = [e for e in self.store.pending.values() if e.source == source]
            assert len(rows) <= MAX_PENDING_PER_SOURCE

    @invariant()
    def the_file_form_holds_everything(self) -> None:
        tree = json.loads(self.store.encode(wall=self.wall))
        assert len(tree["trusted"] or ()) == len(self.store.trusted)
        assert len(tree.get("pending", ())) == len(self.store.pending)


TestSets = Sets.TestCase


# The writer


async def test_changes_are_saved_in_the_background(tmp_path: Path) -> None:
    store, writer = TrustStore(tmp_path / "trust.json"), TrustWriter()
    store.on_change = writer.changed
    store.trust(2, wall=WALL, public_key=KEY, mutual=True)
    store.ask(3, WALL)
    await writer.aclose()

    again = TrustStore.load(tmp_path / "trust.json", wall=WALL)
    assert again.trusted == store.trusted
    assert again.outgoing == store.outgoing
    assert stat.S_IMODE((tmp_path / "trust.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["trust.json"]


async def test_a_flush_returns_when_the_change_is_on_disk(tmp_path: Path) -> None:
    store, writer = TrustStore(tmp_path / "trust.json"), TrustWriter()
    store.trust(2, wall=WALL, mutual=True)
    await writer.flush(store)
    assert TrustStore.load(tmp_path / "trust.json", wall=WALL).is_trusted(2)
    before = (tmp_path / "trust.json").stat().st_ino
    await writer.flush(store)
    assert (tmp_path / "trust.json").stat().st_ino == before, "nothing to write"
    await writer.aclose()


async def test_a_store_without_a_path_is_never_saved() -> None:
    store, writer = TrustStore(), TrustWriter()
    store.on_change = writer.changed
    store.trust(2, wall=WALL, mutual=True)
    await writer.flush(store)
    await writer.aclose()


async def test_a_disk_that_refuses_is_reported(tmp_path: Path) -> None:
    store, writer = TrustStore(tmp_path / "missing" / "trust.json"), TrustWriter()
    store.trust(2, wall=WALL, mutual=True)
    with pytest.raises(StorageError, match="cannot write"):
        await writer.flush(store)
    (tmp_path / "missing").mkdir()
    await writer.flush(store)
    await writer.aclose()
