"""Inputs as the program reads them: arrays become files in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from ._errors import Error, InputError

if TYPE_CHECKING:
    import numpy.typing

    Feed = Mapping[str, "numpy.typing.NDArray[Any]"]

Path = Union[str, "os.PathLike[str]"]
#: A path or several; texts, where a tokenizer is given; arrays by the names of the graph's inputs, samples along the
#: first axis, or one array for a model of one input; or any number of these, one after the other, of any lengths, each
#: alone or in a tuple with a label that is left alone.
Data = Union[Path, Sequence[Path], "Feed", "numpy.typing.NDArray[Any]", Iterable[Any]]

_ENDINGS = (".npz", ".txt", ".tsv", ".csv", ".jsonl", ".pb")


@contextlib.contextmanager
def as_paths(data: Data | None, tokenizer: Path | None = None) -> Iterator[list[str]]:
    """The paths to give to ``--data``; what was written for them is gone afterwards, and errors do not name it."""
    if data is None:
        yield []
    elif isinstance(data, (str, os.PathLike)):
        yield [os.fspath(data)]
    elif (named := _paths(data)) and not _are_texts(named):
        yield named
    elif named and tokenizer is None:
        first = named[0][:60]
        raise InputError(f"the data: there is no file {first!r}; if these are texts, give the model's tokenizer")
    else:
        with tempfile.TemporaryDirectory(prefix="onnx-prune-") as name:
            folder = pathlib.Path(name)
            try:
                if named:
                    texts = folder / "texts.jsonl"
                    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in named), encoding="utf-8")
                    yield [str(texts)]
                elif (feed := _feed(data)) is not None:
                    yield [_write(folder / "data.npz", feed)]
                else:
                    _write_all(folder, data)
                    yield [name]
            except Error as error:
                error.args = (_without(str(error), name),)
                raise


def _paths(data: Any) -> list[str] | None:
    """A list of paths or texts."""
    if isinstance(data, Sequence) and data and all(isinstance(p, (str, os.PathLike)) for p in data):
        return [os.fspath(p) for p in data]
    return None


def _are_texts(named: Sequence[str]) -> bool:
    """Whether strings are no paths: none of them is there or ends like one."""
    return not any(name.lower().endswith(_ENDINGS) or (len(name) < 1024 and os.path.exists(name)) for name in named)


def _feed(data: Any) -> Feed | None:
    """Arrays by name; one array has the name of the only input, whatever that is."""
    if isinstance(data, Mapping):
        return data
    if isinstance(data, tuple) and data and isinstance(data[0], Mapping):
        return _feed(data[0])
    return {"the array": data} if hasattr(data, "__array__") else None


def _write_all(folder: pathlib.Path, data: Iterable[Any]) -> None:
    count = 0
    for item in data:
        # What a loader yields: inputs, perhaps with labels.
        pair = isinstance(item, (tuple, list)) and len(item) > 0 and _feed(item[0]) is not None
        feed = _feed(item[0] if pair else item)
        if feed is None:
            raise TypeError(
                f"data must be a path, texts, an array, a dictionary of arrays or an iterable of these; it holds {type(item).__name__}"
            )
        _write(folder / f"{count:08}.npz", feed)
        count += 1
    if count == 0:
        raise ValueError("data is empty")


def _without(text: str, folder: str) -> str:
    """The words of an error without the files that were made for it."""
    feeds = re.sub(
        re.escape(folder) + r"[/\\](\d{8})\.npz", lambda found: f"item {int(found.group(1))} of the data", text
    )
    return re.sub(re.escape(folder) + r"([/\\](data\.npz|texts\.jsonl))?", "the data", feeds)


def _write(path: pathlib.Path, feed: Feed) -> str:
    import numpy

    arrays: dict[str, Any] = {str(name): numpy.asarray(array) for name, array in feed.items()}
    with path.open("wb") as file:
        numpy.savez(file, **arrays)
    return str(path)


@contextlib.contextmanager
def as_model(model: Any) -> Iterator[Path]:
    """The path of a model, which may be an ``onnx.ModelProto``."""
    if not hasattr(model, "SerializeToString"):
        yield model
        return
    import onnx

    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        if model.ByteSize() < 2**31:
            path.write_bytes(model.SerializeToString())
        else:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save(copy, str(path), save_as_external_data=True)
        yield path
