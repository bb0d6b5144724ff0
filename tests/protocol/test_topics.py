"""Topic patterns: a table, and the trie against a matcher written differently."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.topics import TopicTrie, is_pattern, matches

topics = st.text(alphabet="ab*./", max_size=9)


def brute_force(pattern: str, topic: str) -> bool:
    """Match through a regular expression built from the rules in the docstring."""
    if pattern == "*" or pattern == topic:
        return True
    parts = re.split(r"([./])", pattern)
    expression = ""
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part != "*":
            expression += re.escape(part)
        else:
            expression += ".*" if is_last and index else "[^./]*"
    return re.fullmatch(expression, topic, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("*", "anything.at/all", True),
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("fleet.*", "fleet.health", True),
        ("fleet.*", "fleet.worker.7.health", True),
        ("fleet.*", "fleet.", True),
        ("fleet.*", "fleet", False),
        ("fleet.*", "fleet/health", False),
        ("fleet.*", "fleets.health", False),
        ("fleet/*", "fleet/a.b", True),
        ("fleet.*.health", "fleet.7.health", True),
        ("fleet.*.health", "fleet.7.8.health", False),
        ("fleet.*.health", "fleet.health", False),
        ("*.health", "worker.health", True),
        ("*.health", "a.b.health", False),
        ("*.*", "a.b.c", True),
        ("*.*", "a", False),
        ("news", "NEWS", False),
        ("a*", "ab", False),
        ("a*", "a*", True),
        ("news.*", "news.*", True),
    ],
)
def test_pattern_matches_as_documented(
    pattern: str, topic: str, *, expected: bool
) -> None:
    assert matches(pattern, topic) is expected
    trie: TopicTrie[int] = TopicTrie()
    trie.add(pattern, 1)
    assert trie.match(topic) == ([1] if expected else [])


@pytest.mark.parametrize(
    ("topic", "expected"),
    [("*", True), ("a.*", True), ("*/b", True), ("a.b", False), ("a*.b", False)],
)
def test_pattern_is_told_from_plain_topic(topic: str, *, expected: bool) -> None:
    assert is_pattern(topic) is expected


@given(topics, topics)
def test_matcher_agrees_with_regular_expression(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) is brute_force(pattern, topic)


@given(st.lists(topics, max_size=12), topics, st.data())
def test_trie_agrees_with_regular_expressions(
    patterns: list[str], topic: str, data: st.DataObject
) -> None:
    trie: TopicTrie[tuple[str, int]] = TopicTrie()
    for pattern in patterns:
        trie.add(pattern, (pattern, 0))
        trie.add(pattern, (pattern, 1))
    assert len(trie) == 2 * len(set(patterns))
    expected = {
        (pattern, n)
        for pattern in patterns
        if brute_force(pattern, topic)
        for n in (0, 1)
    }
    found = trie.match(topic)
    assert len(found) == len(set(found))
    assert set(found) == expected

    gone = set(data.draw(st.lists(st.sampled_from(patterns)))) if patterns else set()
    for pattern in gone:
        trie.remove(pattern, (pattern, 0))
        trie.remove(pattern, (pattern, 0))
    assert len(trie) == 2 * len(set(patterns)) - len(gone)
    assert set(trie.match(topic)) == {
        (pattern, n) for pattern, n in expected if n == 1 or pattern not in gone
    }


def test_emptied_trie_keeps_nothing() -> None:
    trie: TopicTrie[int] = TopicTrie()
    patterns = ["*", "a", "a.*", "a.*.b", "*.c", "a.b/*"]
    for pattern in patterns:
        trie.add(pattern, 1)
    trie.remove("a.*.nowhere", 1)
    trie.remove("a.*.b", 2)
    trie.remove("nowhere", 1)
    assert len(trie) == len(patterns)
    for pattern in patterns:
        trie.remove(pattern, 1)
    assert len(trie) == 0
    assert trie._root.is_empty
    assert not trie._exact


def test_one_subscriber_with_several_fitting_patterns_is_returned_once() -> None:
    trie: TopicTrie[str] = TopicTrie()
    for pattern in ["*", "a.b", "a.*", "*.b", "*.*"]:
        trie.add(pattern, "x")
    assert trie.match("a.b") == ["x"]


def test_text_of_too_many_levels_is_no_pattern() -> None:
    deepest, deeper = ".*" * 31, ".*" * 32
    assert is_pattern(deepest)
    assert not is_pattern(deeper)
    trie: TopicTrie[int] = TopicTrie()
    trie.add(deepest, 1)
    trie.add(deeper, 2)
    for topic, expected in [
        (".a" * 31, [1]),
        (".a" * 32, [1]),
        (".a" * 500, [1]),
        (deeper, [1, 2]),
        (".a" * 30, []),
    ]:
        assert sorted(trie.match(topic)) == expected
        assert matches(deepest, topic) is (1 in expected)
        assert matches(deeper, topic) is (2 in expected)


def test_topic_of_a_thousand_levels_is_an_ordinary_topic() -> None:
    topic = "." * 1023
    trie: TopicTrie[int] = TopicTrie()
    for number, pattern in enumerate([topic, "*.*", "*", ".*"]):
        trie.add(pattern, number)
    assert sorted(trie.match(topic)) == [0, 1, 2, 3]
    trie.remove(topic, 0)
    assert sorted(trie.match(topic)) == [1, 2, 3]
