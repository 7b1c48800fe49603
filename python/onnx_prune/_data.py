"""Inputs as the program reads them: arrays become files in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    import numpy.typing

    Feed = Mapping[str, "numpy.typing.NDArray[Any]"]

Path = Union[str, "os.PathLike[str]"]
#: A path or several; arrays by the names of the graph's inputs, samples along the first axis; or any number of such
#: dictionaries, one after the other, of any lengths.
Data = Union[Path, Sequence[Path], "Feed", Iterable["Feed"]]


@contextlib.contextmanager
def as_paths(data: Data | None) -> Iterator[list[str]]:
    """The paths to give to ``--data``; what was written for them is gone afterwards."""
    if data is None:
        yield []
    elif isinstance(data, (str, os.PathLike)):
        yield [os.fspath(data)]
    elif isinstance(data, Mapping):
        with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
            yield [_write(pathlib.Path(folder) / "data.npz", data)]
    elif isinstance(data, Sequence) and data and all(isinstance(p, (str, os.PathLike)) for p in data):
        yield [os.fspath(p) for p in data if isinstance(p, (str, os.PathLike))]
    else:
        with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
            count = 0
            for feed in data:
                if not isinstance(feed, Mapping):
                    raise TypeError(
                        f"data must be a path, a dictionary of arrays or an iterable of such; it holds {type(feed).__name__}"
                    )
                _write(pathlib.Path(folder) / f"{count:08}.npz", feed)
                count += 1
            if count == 0:
                raise ValueError("data is empty")
            yield [folder]


def _write(path: pathlib.Path, feed: Feed) -> str:
    import numpy

    arrays: dict[str, Any] = {name: numpy.asarray(array) for name, array in feed.items()}
    with path.open("wb") as file:
        numpy.savez(file, **arrays)
    return str(path)
