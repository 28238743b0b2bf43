"""The public face: few names, each of them there, and quick to import."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import p2pfl

MOST_NAMES = 15
MOST_MODULES = 120  # a bare interpreter and typing load about 60; torch alone loads over 1,000
TOPICS = ("topology", "audit", "governance", "data", "peer", "errors", "net", "crypto", "gossip", "cli")


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout))


def test_few_names_in_order() -> None:
    assert len(p2pfl.__all__) <= MOST_NAMES
    assert list(p2pfl.__all__) == sorted(set(p2pfl.__all__))


@pytest.mark.parametrize("name", p2pfl.__all__)
def test_each_name_resolves(name: str) -> None:
    found = getattr(p2pfl, name)
    assert found.__doc__ or name == "PeerId"


def test_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        p2pfl.no_such_name  # noqa: B018


def test_import_is_quick_and_without_torch() -> None:
    loaded = modules_after("import p2pfl")
    assert "torch" not in loaded
    assert len(loaded) < MOST_MODULES


@pytest.mark.parametrize("topic", TOPICS)
def test_topics_import_no_torch(topic: str) -> None:
    assert "torch" not in modules_after(f"import p2pfl.{topic}")


def test_using_the_names_imports_no_torch() -> None:
    assert "torch" not in modules_after("import p2pfl\nfor name in p2pfl.__all__: getattr(p2pfl, name)")


@pytest.mark.parametrize("topic", TOPICS)
def test_topics_list_what_they_have(topic: str) -> None:
    module = importlib.import_module(f"p2pfl.{topic}")
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name)
