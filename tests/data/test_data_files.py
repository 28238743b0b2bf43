"""Loaders of files: MNIST idx, LIBSVM, CSV, Parquet. Real ones where they are at hand, malformed ones made here."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.data import by_column, from_csv, from_libsvm, from_mnist, from_parquet
from p2pfl.errors import ConfigError, DataError

DATA = Path(os.environ.get("P2PFL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"no {name} in {DATA}; set P2PFL_DATA")


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


IMAGES, LABELS = np.arange(3 * 4 * 2, dtype=np.uint8).reshape(3, 4, 2), np.array([1, 0, 2], dtype=np.uint8)
FILES = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[:1]),
    "t10k-labels-idx1-ubyte": idx(LABELS[:1]),
}


def written(folder: Path, **other: bytes) -> Path:
    for name, data in FILES.items():
        (folder / name).write_bytes(other.get(name.split("-idx")[0].replace("-", "_"), data))
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_small_idx_files(tmp_path: Path, packed: bool) -> None:
    written(tmp_path)
    if packed:
        for path in list(tmp_path.iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    examples = from_mnist(tmp_path)
    assert examples.train[0].dtype == np.float32 and examples.labels.tolist() == [1, 0, 2]
    assert np.array_equal(examples.train[0], IMAGES.reshape(3, 8).astype(np.float32) / 255)
    assert from_mnist(tmp_path, images=True).test[0].shape == (1, 1, 4, 2)


@needs("mnist")
def test_the_real_mnist() -> None:
    examples = from_mnist(DATA / "mnist")
    assert examples.train[0].shape == (60_000, 784) and examples.test[0].shape == (10_000, 784)
    assert np.bincount(examples.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(examples.test[1]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert examples.train[0].mean() == pytest.approx(0.1306605, abs=1e-6)  # the mean everybody subtracts
    assert examples.train[0].max() == 1


BAD_IDX: list[tuple[str, bytes, str]] = [
    ("empty", b"", "not an idx file"),
    ("other magic", b"\x89PNG", "not an idx file"),
    ("floats", b"\0\0\x0d\1" + struct.pack(">I", 3) + bytes(12), "not an idx file of unsigned bytes"),
    ("no dimension", b"\0\0\x08\0", "not an idx file"),
    ("header cut", b"\0\0\x08\3\0\0", "ends inside its header"),
    ("data cut", idx(IMAGES)[:-1], "has 23 bytes where its header promises 24"),
    ("more data", idx(IMAGES) + b"\0", "has more bytes"),
    ("huge", b"\0\0\x08\3" + b"\xff" * 12, "more than 4 GiB"),
    ("other count", idx(IMAGES[:2]), r"hold arrays \[2, 4, 2\] and \[3\]"),
    ("flat", idx(IMAGES.reshape(3, 8)), r"hold arrays \[3, 8\] and \[3\]"),
    ("none", idx(IMAGES[:0]), "hold arrays"),
]


@pytest.mark.parametrize(("data", "says"), [row[1:] for row in BAD_IDX], ids=[row[0] for row in BAD_IDX])
def test_bad_idx_files_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        from_mnist(written(tmp_path, train_images=data))


def test_missing_and_damaged_gzip_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz in"):
        from_mnist(tmp_path / "nowhere")
    written(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    for data in (b"plain", gzip.compress(idx(IMAGES))[:-12], b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 30):
        packed.write_bytes(data)
        with pytest.raises(DataError, match="not a whole gzip file"):
            from_mnist(tmp_path)


def test_small_libsvm_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("+1 1:0.5 3:2 # note\n\n-1 2:-1e-3\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"-1 5:1\n"))
    examples = from_libsvm(tmp_path / "a", tmp_path / "b.gz")
    assert examples.labels.tolist() == [1, 0] and examples.test[1].dtype == np.int64
    assert np.array_equal(examples.train[0], np.array([[0.5, 0, 2, 0, 0], [0, -1e-3, 0, 0, 0]], np.float32))
    assert examples.test[0].tolist() == [[0, 0, 0, 0, 1]]
    assert from_libsvm(tmp_path / "a", features=7).train[0].shape == (2, 7)
    (tmp_path / "c").write_text("2.5 1:1\n3 1:0\n")
    assert from_libsvm(tmp_path / "c").labels.dtype == np.float32
    (tmp_path / "d").write_text("1 1:1\n2 1:0\n-1 1:0\n")
    assert from_libsvm(tmp_path / "d", tmp_path / "a").test[1].tolist() == [1, -1]  # three classes stay what they are


@needs("libsvm")
def test_the_real_a9a() -> None:
    examples = from_libsvm(DATA / "libsvm" / "a9a.gz", DATA / "libsvm" / "a9a.t.gz")
    assert examples.train[0].shape == (32_561, 123) and examples.test[0].shape == (16_281, 123)
    assert np.bincount(examples.labels).tolist() == [24_720, 7_841] and examples.name == "a9a"
    from sklearn.datasets import load_svmlight_file

    inputs, _ = load_svmlight_file(str(DATA / "libsvm" / "a9a.gz"), n_features=123)
    assert np.array_equal(examples.train[0], inputs.toarray().astype(np.float32))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "holds no examples"),
        (b"# only a note\n", "holds no examples"),
        (b"1 1:1\nx 1:1\n", "line 2 is not 'label index:value"),
        (b"1 0:1\n", "line 1 is not"),
        (b"1 2:1 2:1\n", "line 1 is not"),
        (b"1 2:1 1:1\n", "line 1 is not"),
        (b"1 1:\n", "line 1 is not"),
        (b"1 1\n", "line 1 is not"),
        (b"1 -1:1\n", "line 1 is not"),
        (b"1 1_0:1\n", "line 1 is not"),
        (b"1 99999999999:1\n", "line 1 is not"),
        (b"1\n2\n", "names no feature"),
        (b"1 1:nan\n", "infinite or not numbers"),
        (b"1 1:1e99\n", "infinite or not numbers"),
        (b"nan 1:1\n", "label is infinite or not a number"),
        (b"1 " + b"1" * 2**22, "more than 4194304 bytes"),
        (b"1 16777216:1\n" * 100, "more than 4 GiB"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bad_libsvm_files_are_refused(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "a").write_bytes(text)
    with pytest.raises(DataError, match=says):
        from_libsvm(tmp_path / "a")


def test_wrong_numbers_of_features_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1 5:1\n")
    with pytest.raises(DataError, match="features up to 5, more than 4"):
        from_libsvm(tmp_path / "a", features=4)
    with pytest.raises(ConfigError, match="from 1 to"):
        from_libsvm(tmp_path / "a", features=0)
    with pytest.raises(DataError, match="there is no file"):
        from_libsvm(tmp_path / "b")


TABLE = "age;pressure;hospital;ill\n63;1.5;Lille;1\n?;2.25;Caen;0\n41;-1;Lille;0\n"


def parquet(path: Path, text: str) -> Path:
    import pandas

    (path / "a.csv").write_text(text)
    frame = pandas.read_csv(path / "a.csv", sep=";", na_values=["?"])
    frame.to_parquet(path / "a.parquet")
    return path / "a.parquet"


def csv(path: Path, text: str) -> Path:
    (path / "a.csv").write_text(text)
    return path / "a.csv"


READERS = [pytest.param(csv, from_csv, id="csv"), pytest.param(parquet, from_parquet, id="parquet")]


@pytest.mark.parametrize(("write", "read"), READERS)
def test_tables(tmp_path: Path, write: Callable[[Path, str], Path], read: Any) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra sim")
    path = write(tmp_path, TABLE)
    filled = read(path, "ill", columns=["hospital"], missing=50)
    assert np.array_equal(filled.train[0], np.array([[63, 1.5], [50, 2.25], [41, -1]], np.float32))
    assert filled.labels.tolist() == [1, 0, 0] and filled.labels.dtype == np.int64
    assert filled.columns["hospital"].tolist() == ["Lille", "Caen", "Lille"]
    assert len(by_column("hospital")(filled, 2, 0).rows[1]) == 2
    fewer = read(path, "ill", columns=["hospital"], missing="drop")
    assert fewer.train[0].tolist() == [[63, 1.5], [41, -1]] and fewer.columns["hospital"].tolist() == ["Lille"] * 2
    real = read(path, "pressure", drop=["hospital", "age"])
    assert real.labels.dtype == np.float32 and real.train[0].tolist() == [[1], [0], [0]]
    words = read(path, "hospital", drop=["age"])
    assert words.labels.tolist() == ["Lille", "Caen", "Lille"]


def test_ids_of_a_csv_file_are_text(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="tables need the extra sim")
    path = csv(tmp_path, "age; ward ;ill\n1;007;1\n2;7;0\n3;7;1\n")
    examples = from_csv(path, "ill", columns=["ward"])
    assert examples.columns["ward"].tolist() == ["007", "7", "7"] and examples.labels.tolist() == [1, 0, 1]
    assert [len(rows) for rows in by_column("ward")(examples, 2, 0).rows] == [1, 2]


def test_large_ids_of_a_parquet_file_stay_apart(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="tables need the extra sim")
    parquet = pytest.importorskip("pyarrow.parquet", reason="tables need the extra sim")
    ids = [2**53, 2**53 + 1, None]
    parquet.write_table(arrow.table({"age": [1, 2, 3], "ward": ids, "ill": [1, 0, 1]}), tmp_path / "a.parquet")
    examples = from_parquet(tmp_path / "a.parquet", "ill", columns=["ward"], missing="drop")
    assert examples.columns["ward"].tolist() == [str(2**53), str(2**53 + 1)]


@pytest.mark.parametrize(("write", "read"), READERS)
@pytest.mark.parametrize(
    ("text", "settings", "kind", "says"),
    [
        (TABLE, {"label": "dead"}, ConfigError, "has no column 'dead'; its columns: age, pressure, hospital, ill"),
        (TABLE, {"label": "ill", "drop": ["sex"]}, ConfigError, "has no column 'sex'"),
        (TABLE, {"label": "ill", "drop": ["ill"]}, ConfigError, "both labels and dropped"),
        (TABLE, {"label": "ill", "drop": ["age", "pressure", "hospital"]}, DataError, "no column left"),
        (TABLE, {"label": "ill", "drop": ["age"]}, DataError, "column 'hospital' holds words or dates"),
        (TABLE, {"label": "ill", "drop": ["hospital"]}, DataError, "column 'age' misses 1 values"),
        (TABLE, {"label": "age", "drop": ["hospital"], "missing": 3.0}, DataError, "column 'age' misses 1 values"),
        (TABLE, {"label": "ill", "missing": "mean"}, ConfigError, "missing = 'mean'; write"),
        (TABLE, {"label": "ill", "missing": float("nan")}, ConfigError, "missing = nan; write"),
        (TABLE, {"label": "ill", "missing": 10**5000}, ConfigError, "missing = a huge number; write"),
        (TABLE, {"label": "ill", "missing": -1e300}, ConfigError, r"missing = -1e\+300; write"),
        (TABLE, {"label": "ill", "drop": [1]}, ConfigError, r"drop = \[1\]; write a list of column names"),
        (TABLE, {"label": "ill", "columns": [1]}, ConfigError, r"columns = \[1\]; write a list of column names"),
        (TABLE, {"label": "ill", "drop": "age"}, ConfigError, "drop = age; write a list of column names"),
        (TABLE, {"label": "ill", "missing": True}, ConfigError, "missing = True; write"),
        ("a;b\n1;\n;2\n", {"label": "b", "missing": "drop"}, DataError, "every example"),
        ("a;b\ninf;1\n2;2\n", {"label": "b"}, DataError, "column 'a' holds infinite"),
        ("a;b\n1;inf\n2;2\n", {"label": "b"}, DataError, "label is infinite"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, write: Any, read: Any, text: str, settings: dict[str, Any], kind: type[Exception], says: str
) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra sim")
    with pytest.raises(kind, match=says):
        read(write(tmp_path, text), **settings)


def test_whole_numbers_of_pandas_with_gaps(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="tables need the extra sim")
    pytest.importorskip("pyarrow", reason="tables need the extra sim")
    frame = pandas.DataFrame(
        {
            "age": pandas.array([63, None, 41], dtype="Int64"),
            "ill": pandas.array([1, 0, 1], dtype="Int64"),
            "seen": pandas.to_datetime(["2024-01-01"] * 3),
            "smokes": [True, False, True],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    examples = from_parquet(tmp_path / "a.parquet", "ill", drop=["seen"], missing="drop")
    assert examples.train[0].tolist() == [[63, 1], [41, 1]] and examples.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match="column 'seen' holds words or dates"):
        from_parquet(tmp_path / "a.parquet", "ill", missing="drop")


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra sim")
    (tmp_path / "a").write_bytes(b"PAR1 but nothing else PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        from_parquet(tmp_path / "a", "x")
    with pytest.raises(DataError, match="zero byte"):
        from_csv(csv(tmp_path, "a,b\n1,\0\n"), "a")
    with pytest.raises(DataError, match="there is no file"):
        from_parquet(tmp_path / "b", "x")


@needs("heart")
def test_the_real_heart_data_as_csv(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="tables need the extra sim")
    head = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,disease\n"
    path = csv(tmp_path, head + (DATA / "heart" / "processed.cleveland.data").read_text())
    examples = from_csv(path, "disease", missing="drop")
    assert examples.train[0].shape == (297, 13) and (examples.labels > 0).sum() == 137
