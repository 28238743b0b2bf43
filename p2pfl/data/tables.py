"""Tables as examples: CSV (checked as the registry checks it) and Parquet, through pandas.

One column holds the labels; further ones may be kept beside the inputs (a hospital's id) or dropped; all others must be
numbers. Missing values are refused unless one says what to do with them: a silent guess would be part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from p2pfl.data.csv_files import check_file, delimiter_of, read_table
from p2pfl.data.examples import Array, Examples
from p2pfl.data.reading import check_size
from p2pfl.errors import ConfigError, DataError
from p2pfl.extras import optional

MOST = float(np.finfo(np.float32).max)
MISSING_SIGNS = ("?", "NA", "NaN", "nan", "null", "")


def from_csv(
    path: Path | str,
    label: str,
    *,
    drop: Sequence[str] = (),
    columns: Sequence[str] = (),
    missing: float | str = "refuse",
) -> Examples:
    """Examples of a CSV file with a header line; needs pandas (extra ``sim``).

    ``label``: the labels' column (whole numbers become int64, other numbers float32, words stay words). ``columns``:
    kept in ``Examples.columns`` as text, so that 007 and 7 stay two; not seen by the model. ``missing``: "refuse",
    "drop" (the examples that have any), or the number to put in the place of inputs. Inputs float32. DataError for a
    file or values that do not fit, ConfigError for a column that is not there.
    """
    path = Path(path)
    table = read_table(path)
    check_size(path, table.rows, table.columns, 8)
    try:
        read = partial(
            optional("pandas", "sim").read_csv,
            path,
            sep=delimiter_of(path),
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=list(MISSING_SIGNS),
            skipinitialspace=True,
            index_col=False,
            low_memory=False,  # the type of a column is that of all its values, not of a block
        )
        kept = {str(name) for name in columns} - {label}
        frame = read(dtype={name: str for name in read(nrows=0).columns if str(name).strip() in kept})
    except (ValueError, OSError) as error:
        raise DataError(f"couldn't read {path} as a table ({str(error)[:120]}); export it again") from error
    if len(frame) != table.rows:
        raise DataError(f"{path} has {table.rows} records, but pandas reads {len(frame)}; export it again")
    frame.columns = [str(name).strip() for name in frame.columns]
    return _examples(frame, path, label, drop, columns, missing)


def from_parquet(
    path: Path | str,
    label: str,
    *,
    drop: Sequence[str] = (),
    columns: Sequence[str] = (),
    missing: float | str = "refuse",
) -> Examples:
    """Examples of a Parquet file; as ``from_csv``. Needs pandas and pyarrow (extra ``sim``)."""
    path = Path(path)
    check_file(path)
    parquet = optional("pyarrow.parquet", "sim")
    arrow_error = optional("pyarrow", "sim").ArrowException
    optional("pandas", "sim")
    try:
        with parquet.ParquetFile(path) as file:
            check_size(path, file.metadata.num_rows, file.metadata.num_columns, 8)
            frame = _with_text(file.read(), [name for name in columns if name != label]).to_pandas()
    except (arrow_error, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({str(error)[:120]}); write it again") from error
    return _examples(frame, path, label, drop, columns, missing)


def _with_text(table: Any, columns: Sequence[str]) -> Any:
    """The Arrow table with whole numbers of these columns as text: pandas rounds large ones beside gaps."""
    arrow = optional("pyarrow", "sim")
    for place, name in enumerate(table.column_names):
        if name in columns and arrow.types.is_integer(table.column(place).type):
            table = table.set_column(place, name, table.column(place).cast(arrow.string()))
    return table


def _examples(
    frame: Any, path: Path, label: str, drop: Sequence[str], columns: Sequence[str], missing: float | str
) -> Examples:
    names = [str(name) for name in frame.columns]
    for key, listed in (("drop", drop), ("columns", columns)):
        if isinstance(listed, str) or not all(isinstance(name, str) for name in listed):
            raise ConfigError(f'{key} = {str(listed)[:60]}; write a list of column names, such as ["age"]')
    if not isinstance(label, str):
        raise ConfigError(f"label = {str(label)[:60]}; write a column's name in quotes")
    for name in (label, *drop, *columns):
        if name not in names:
            raise ConfigError(f"{path} has no column {name[:60]!r}; its columns: {', '.join(names)[:300]}")
    if label in drop:
        raise ConfigError(f"the column {label[:60]!r} cannot be both labels and dropped; choose")
    beside = {label, *drop, *columns}
    inputs = [name for name in names if name not in beside]
    if not inputs:
        raise DataError(f"{path} has no column left as an input; drop fewer")
    if len(set(names)) != len(names):
        raise DataError(f"{path} names a column twice; rename one")
    frame = _filled(frame, path, inputs, [label, *columns], missing)
    for name in inputs:
        if frame[name].dtype.kind not in "iufb":
            raise DataError(f"{path}: the column {name[:60]!r} holds words or dates, not numbers; drop it")
    values = frame[inputs].to_numpy(dtype=np.float32)
    if not np.isfinite(values).all():
        bad = inputs[int(np.argmin(np.isfinite(values).all(axis=0)))]
        raise DataError(f"{path}: the column {bad[:60]!r} holds infinite values; mend it")
    kept = {name: np.asarray([str(value) for value in frame[name]]) for name in columns}
    return Examples((values, _labels(frame[label], path)), columns=kept, name=path.stem)


def _filled(frame: Any, path: Path, inputs: list[str], needed: list[str], missing: float | str) -> Any:
    """The frame without missing values."""
    if isinstance(missing, str) and missing not in ("refuse", "drop"):
        raise ConfigError(f'missing = {missing[:40]!r}; write "refuse", "drop" or a number')
    # what float32 cannot hold would turn into infinity among the inputs
    if isinstance(missing, bool) or (not isinstance(missing, str) and not abs(missing) <= MOST):
        shown = "a huge number" if isinstance(missing, int) and missing not in (True, False) else missing
        raise ConfigError(f'missing = {shown}; write "refuse", "drop" or a number')
    if missing == "drop":
        frame = frame.dropna(subset=[*inputs, *needed])
        if not len(frame):
            raise DataError(f"every example of {path} misses a value; drop the columns that are mostly missing")
        # a column that held gaps beside whole numbers is float; without the gaps it may be whole again
        return frame
    if not isinstance(missing, str):
        frame = frame.copy()
        frame[inputs] = frame[inputs].fillna(missing)
    gaps = frame[[*inputs, *needed]].isna().sum()
    for name, count in gaps.items():
        if count:
            raise DataError(
                f'{path}: the column {str(name)[:60]!r} misses {count} values; drop it, or say missing = "drop" or, '
                "for inputs, a number"
            )
    return frame


def _labels(series: Any, path: Path) -> Array:
    labels = _column(series)
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64)
    if labels.dtype.kind != "f":
        return labels
    if not np.isfinite(labels).all():
        raise DataError(f"{path}: a label is infinite; mend it")
    whole = (labels == np.rint(labels)).all() and np.abs(labels).max() < 2**53
    return labels.astype(np.int64 if whole else np.float32)


def _column(series: Any) -> Array:
    """A column as numbers or as words."""
    kind = series.dtype.kind
    if kind in "iufb":
        return np.asarray(series, dtype="?" if kind == "b" else f"{kind}8")
    return np.asarray([str(value) for value in series])
