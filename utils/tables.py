"""The one cache of tables: a table computed once, kept as Parquet, and never taken for what it is not.

A file holds its table, what the table depends on, and a checksum over all of its bytes. It counts only while all three
fit; what is returned is always what was read back, so the first answer equals every later one to the last bit.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from utils.errors import CourseError
from utils.files import atomic_write, canonical_json
from utils.paths import relative
from utils.sealed import set_aside

FORMAT = 1  # raise it when a file's layout changes: older files then count as none
_SEAL = b"lora-course-sha256:"
_OPEN = _SEAL + b"0" * 64  # stands in the file's place for the checksum while the checksum is computed
_PLAIN = (str, bool, int, float, np.generic, type(None), type(pd.NA))


def cached_table(path: Path, settings: dict, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table from its file, or computed now and kept there.

    Parameters
    ----------
    path : Path
        Where the table is kept, by convention with the suffix ``.parquet``; folders are made.
    settings : dict
        Everything that the numbers depend on, JSON-ready, a version of the method included. A file that was written
        for other settings, or under another name, is computed anew; so is a damaged one, which is said in one line.
    compute : callable
        Returns the DataFrame: column names are strings, each used once; a column holds numbers, strings or truth
        values, and any of them may be missing. The index is dropped.

    Returns
    -------
    pandas.DataFrame
        What was read back: floats to the bit, integers as integers, ``""`` and ``"NA"`` as strings; an empty table
        keeps its columns.

    Raises
    ------
    CourseError
        If a column holds anything else, such as dictionaries, or the file cannot be written.
    """
    if os.path.lexists(path) and not path.is_file():  # neither read nor replaced, and a pipe would be waited for
        set_aside(path, "it is no file", then="the table is computed anew")
    found = stored_table(path, settings)
    if found is not None:
        return found
    content = _packed(compute(), _tag(path, settings), path.stem)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return _unpacked(content)[1]


def stored_table(path: Path, settings: dict) -> pd.DataFrame | None:
    """The table that `path` holds for these settings; None if there is none, or a damaged one, which is said."""
    try:
        tag, table = _unpacked(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException):
        print(f"The table {relative(path)} is damaged; it is computed anew.", flush=True)
        return None
    return table if tag == _tag(path, settings) else None


def _tag(path: Path, settings: dict) -> bytes:
    """What a file must have been written for. Its place is part of it: a file that was moved is not another's.

    The two folders above it name the run or the base; those above them may be moved.
    """
    place = [*path.absolute().parts[-3:-1], path.stem]
    return canonical_json({"format": FORMAT, "table": place, "settings": settings}).encode()


def _packed(frame: pd.DataFrame, tag: bytes, name: str) -> bytes:
    """A sealed file's bytes: Parquet, with the tag and the checksum among the metadata of its schema."""
    for column in frame.columns[(frame.dtypes == object).to_numpy()]:  # noqa: E721  one answer per column
        odd = next((value for value in frame[column] if not isinstance(value, _PLAIN)), None)
        if odd is not None:
            raise CourseError(f"Expected numbers, strings or truth values in column '{column}' of the table '{name}', "
                              f"got a {type(odd).__name__}; do turn it into columns of its own, or into JSON.")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise CourseError(f"Expected columns of one kind each in the table '{name}', got one that Parquet cannot hold "
                          f"({'; '.join(map(str, error.args))}); do give every column one kind of value.") from error
    table = table.replace_schema_metadata({**table.schema.metadata, b"tag": tag, b"seal": _OPEN})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    return content.replace(_OPEN, _SEAL + hashlib.sha256(content).hexdigest().encode())


def _unpacked(content: bytes) -> tuple[bytes, pd.DataFrame]:
    """Tag and table of a sealed file; ValueError where a byte of it is not what was written."""
    seals = re.findall(_SEAL + rb"[0-9a-f]{64}", content)
    if len(seals) != 1:
        raise ValueError("no seal")
    opened = content.replace(seals[0], _OPEN)
    if seals[0] != _SEAL + hashlib.sha256(opened).hexdigest().encode():
        raise ValueError("another checksum")
    table = pq.read_table(pa.BufferReader(content), use_threads=False)
    return table.schema.metadata[b"tag"], table.to_pandas(use_threads=False)
