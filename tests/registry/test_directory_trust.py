"""Who consented to whom, and who went to find whom."""

from __future__ import annotations

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.registry import contacts
from pilotfleet.registry.contacts import Contacts
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.records import grant_key
from pilotfleet.registry.directory.trust import Grant, TrustTable
from pilotfleet.registry.store.base import Entry


def test_consent_has_a_direction() -> None:
    table = TrustTable()
    table.set_grant(1, 2, Grant.CONSENT)
    assert table.admits(1, 2)
    assert not table.admits(2, 1)
    assert table.has_pair(1, 2)
    assert table.has_pair(2, 1)
    assert table.bits(2) == 1 << 1
    assert table.bits(1) == 0


def test_a_location_is_no_consent_and_no_pair() -> None:
    table = TrustTable()
    table.set_grant(1, 2, Grant.LOCATION)
    assert table.shows(1, 2)
    assert not table.shows(2, 1)
    assert not table.admits(1, 2)
    assert not table.has_pair(1, 2)
    table.set_grant(1, 2, Grant.CONSENT)
    table.set_grant(1, 2, None)
    assert not table.shows(1, 2)


def test_pairs_are_counted_once() -> None:
    table = TrustTable()
    for _ in range(2):
        table.set_grant(1, 2, Grant.CONSENT)
        table.set_grant(2, 1, Grant.CONSENT)
        table.set_old_pair(1, 2, exists=True)
    assert table.pairs == 1
    table.set_grant(1, 2, None)
    table.set_grant(2, 1, None)
    assert table.pairs == 1
    table.set_old_pair(1, 2, exists=False)
    assert table.pairs == 0


def test_an_unknown_grant_is_not_guessed() -> None:
    with pytest.raises(StorageError, match=r"grant\.1\.2 cannot be read"):
        Directory().apply(Entry(grant_key(1, 2), b"?", 1))


def test_contacts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contacts, "MAX_CONTACTS", 2)
    known = Contacts()
    for peer in (1, 2):
        known.add(9, peer)
    known.add(9, 1)
    known.add(9, 3)
    assert [known.has(9, peer) for peer in (1, 2, 3)] == [True, False, True]
    assert not known.has(1, 9)
    known.forget(9, 1)
    assert not known.has(9, 1)
