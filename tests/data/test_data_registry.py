"""The registry of granted datasets, and the tables of bad files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from p2pfl.data import RegisteredDataset, Registry, fingerprint_file, read_table
from p2pfl.data.csv_files import BLOCK, LINE_LIMIT
from p2pfl.data.registry import MAX_DATASETS
from p2pfl.errors import ConfigError, DataError, StoreError

GOOD = b"age,sex,label\n63,1,0\n67,?,1\n"


def assert_one_sentence(error: BaseException) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 700, text
    assert ";" in text, text


def put(folder: Path, content: bytes, name: str = "heart.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_a_file_is_registered_and_resolved(tmp_path: Path) -> None:
    file = put(tmp_path, GOOD)
    registry = Registry(tmp_path / "data.json")
    assert registry.list() == ()
    added = registry.add("heart", file, now=7)
    assert added == RegisteredDataset(
        tag="heart",
        path=file.resolve(),
        fingerprint=hashlib.sha256(GOOD).hexdigest(),
        rows=2,
        columns=3,
        bytes=len(GOOD),
        added=7,
    )
    assert Registry(tmp_path / "data.json").list() == (added,)
    assert Registry(tmp_path / "data.json").resolve("heart") == added
    assert (tmp_path / "data.json").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["data.json", "heart.csv"]


def test_the_path_is_absolute_and_links_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, GOOD)
    (tmp_path / "link.csv").symlink_to("heart.csv")
    monkeypatch.chdir(tmp_path)
    assert Registry(Path("data.json")).add("heart", Path("link.csv"), now=1).path == tmp_path / "heart.csv"


@pytest.mark.parametrize(
    ("content", "rows", "columns"),
    [
        (GOOD, 2, 3),
        (GOOD.rstrip(b"\n"), 2, 3),
        (GOOD + b"\n\n", 2, 3),
        (GOOD.replace(b"\n", b"\r\n"), 2, 3),
        (b"\xef\xbb\xbf" + GOOD, 2, 3),
        (b"age;rate\n63;1,5\n", 1, 2),
        (b"age\trate\n63\t1.5\n", 1, 2),
        (b"age\n63\n64\n", 2, 1),
        (b'name,text\n"a, b","two\nlines"\n', 1, 2),
        (b"2019,2020,label\n1,2,3\n", 1, 3),
        (b"a,b\n,\n", 1, 2),
        ("größe,\N{SNOWMAN}\n1,2\n".encode(), 1, 2),
    ],
)
def test_good_tables_are_counted(tmp_path: Path, content: bytes, rows: int, columns: int) -> None:
    table = read_table(put(tmp_path, content))
    assert (table.rows, table.columns, table.bytes) == (rows, columns, len(content))
    assert table.fingerprint == hashlib.sha256(content).hexdigest()


BAD = [
    (b"", "is empty"),
    (b"\n", "is empty or begins with an empty line"),
    (b"\n" + GOOD, "begins with an empty line"),
    (b"a,b\n", "no records"),
    (b"a,b\n\n\n", "no records"),
    (b"63,1,145.0\n67,1,160.0\n", "holds numbers, not names"),
    (b"28,1,?,NA,\n29,1,2,3,4\n", "holds numbers, not names"),
    (b"63;1\n64;2\n", "holds numbers, not names"),
    (b"a,,c\n1,2,3\n", "column 2 has no name"),
    (b"a,b,a\n1,2,3\n", "names 'a' twice"),
    (b"a,b\n1,2\n3\n", "line 3 has 1 values, the header has 2"),
    (b"a,b\n1,2,3\n", "line 2 has 3 values, the header has 2"),
    (b"a,b\n1,2\n\n3,4\n", "line 3 is empty"),
    (b"a\n1\n\n2\n", "line 3 is empty"),
    (b'a,b\n"1,2\n3,4\n', "is not CSV"),
    (b'a,b\n"1"x,2\n', "line 2 is not CSV"),
    (b"a,b\r1,2\r", "is not CSV"),
    (b'a,b\n"' + b"x\n" * 100_000, "is not CSV"),
    (b"a,b\n1,\xff\n", "line 2 is not UTF-8"),
    ("a,b\n1,2\n".encode("utf-16"), "is not"),
    (b"PK\x03\x04\x00\x00", "zero byte"),
    (b"\x7fELF\x02\x01\x01\x00\n", "zero byte"),
    (b"a,b\n" + b"x" * (LINE_LIMIT + 1), "line 2 has more than"),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_bad_files_end_in_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    file = put(tmp_path, content)
    registry = Registry(tmp_path / "data.json")
    with pytest.raises(DataError, match=words) as caught:
        registry.add("heart", file, now=1)
    assert_one_sentence(caught.value)
    assert str(file) in str(caught.value)
    assert registry.list() == ()


def _loop(folder: Path) -> None:
    (folder / "x").symlink_to(folder / "x")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "there is no file"),
        (lambda folder: (folder / "x").mkdir(), "is a folder"),
        (lambda folder: os.mkfifo(folder / "x"), "not a regular file"),
        (lambda folder: (folder / "x").symlink_to("nowhere"), "there is no file"),
        (_loop, "couldn't"),
    ],
)
def test_what_is_no_file_ends_in_one_sentence(tmp_path: Path, prepare: Any, words: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        Registry(tmp_path / "data.json").add("heart", tmp_path / "x", now=1)
    assert_one_sentence(caught.value)


def test_an_unreadable_file_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path, GOOD)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root reads everything, whatever the mode says
    for call in (read_table, fingerprint_file):
        with pytest.raises(DataError, match="Permission denied") as caught:
            call(file)
        assert_one_sentence(caught.value)


@pytest.mark.parametrize("tag", ["", "Heart", "a b", "../x", "-a", ".a", "a\n", "a" * 65, "é", "a/b", "a\0"])
def test_bad_tags_are_refused(tmp_path: Path, tag: str) -> None:
    registry = Registry(tmp_path / "data.json")
    for call in (lambda: registry.add(tag, put(tmp_path, GOOD), now=1), lambda: registry.resolve(tag)):
        with pytest.raises(DataError, match="is not a tag") as caught:
            call()
        assert_one_sentence(caught.value)


def test_a_tag_in_use_is_replaced_only_when_told(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "data.json")
    file, other = put(tmp_path, GOOD), put(tmp_path, GOOD + b"1,2,3\n", "other.csv")
    first = registry.add("heart", file, now=1)
    assert registry.add("heart", file, now=2) == first
    with pytest.raises(DataError, match="already stands for") as caught:
        registry.add("heart", other, now=3)
    assert "--replace" in str(caught.value)
    assert registry.list() == (first,)
    second = registry.add("heart", other, now=4, replace=True)
    assert registry.list() == (second,)
    assert registry.resolve("heart").rows == 3


def test_a_changed_or_missing_file_is_refused_until_replaced(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "data.json")
    file = put(tmp_path, GOOD)
    registry.add("heart", file, now=1)
    file.write_bytes(GOOD.replace(b"63", b"64"))
    with pytest.raises(DataError, match="has changed since") as caught:
        registry.resolve("heart")
    assert "p2pfl data add" in str(caught.value) and "--replace" in str(caught.value)
    assert_one_sentence(caught.value)
    with pytest.raises(DataError, match="already stands for"):
        registry.add("heart", file, now=2)
    registry.add("heart", file, now=2, replace=True)
    registry.resolve("heart")
    file.unlink()
    with pytest.raises(DataError, match="there is no file"):
        registry.resolve("heart")


def test_an_unknown_tag_names_the_known_ones(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "data.json")
    with pytest.raises(DataError, match="registered: none yet"):
        registry.resolve("heart")
    registry.add("cancer", put(tmp_path, GOOD), now=1)
    with pytest.raises(DataError, match="registered: cancer") as caught:
        registry.resolve("heart")
    assert_one_sentence(caught.value)


def test_long_files_are_fingerprinted_in_blocks(tmp_path: Path) -> None:
    content = b"a,b\n" + b"1,2\n" * (BLOCK // 4 + 3)
    file = put(tmp_path, content)
    assert fingerprint_file(file) == (hashlib.sha256(content).hexdigest(), len(content))
    assert read_table(file).rows == BLOCK // 4 + 3


ROW = (
    '{"tag": "heart", "path": "/x", "fingerprint": "' + "0" * 64 + '", "rows": 1, "columns": 1, "bytes": 1, "added": 1}'
)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"format": "p2pfl data registry v2", "datasets": []}',
        '{"format": "p2pfl data registry v1", "datasets": {}}',
        '{"format": "p2pfl data registry v1", "datasets": [1]}',
        *(
            '{"format": "p2pfl data registry v1", "datasets": [' + row + "]}"
            for row in (
                ROW.replace('"/x"', '"x"'),
                ROW.replace('"/x"', "1"),
                ROW.replace('"heart"', '"He art"'),
                ROW.replace("0" * 64, "0" * 63),
                ROW.replace('"rows": 1', '"rows": true'),
                ROW.replace('"rows": 1', '"rows": -1'),
                ROW.replace('"rows": 1, ', ""),
                ROW + ", " + ROW,
            )
        ),
    ],
)
def test_a_damaged_registry_is_refused_and_kept(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(damage)
    registry = Registry(path)
    file = put(tmp_path, GOOD)
    for call in (
        registry.list,
        lambda: registry.resolve("heart"),
        lambda: registry.add("heart", file, now=1),
    ):
        with pytest.raises(ConfigError, match="damaged") as caught:
            call()
        assert_one_sentence(caught.value)
    assert path.read_text() == damage


def test_the_number_of_datasets_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    rows = ", ".join(ROW.replace('"heart"', f'"t{number}"') for number in range(MAX_DATASETS))
    path.write_text('{"format": "p2pfl data registry v1", "datasets": [' + rows + "]}")
    file = put(tmp_path, GOOD)
    with pytest.raises(DataError, match="remove some"):
        Registry(path).add("heart", file, now=1)
    Registry(path).add("t3", file, now=1, replace=True)
    assert len(Registry(path).list()) == MAX_DATASETS


def test_a_registry_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="couldn't write"):
        Registry(tmp_path / "absent" / "data.json").add("heart", put(tmp_path, GOOD), now=1)


def test_a_failed_write_leaves_the_old_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "data.json")
    first = registry.add("heart", put(tmp_path, GOOD), now=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        registry.add("other", put(tmp_path, GOOD, "other.csv"), now=2)
    assert registry.list() == (first,)
    assert sorted(os.listdir(tmp_path)) == ["data.json", "heart.csv", "other.csv"]
