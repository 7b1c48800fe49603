#!/usr/bin/env python3
"""Runs the ONNX checker, with full shape inference, over model files.

usage: check.py MODEL...
       check.py < paths.json      a JSON list of paths; lists inside it are walked, so pairs are fine

Prints one JSON line per model, in the order given: {"path", "ok", "error"}; the error is null where ok is true.
Exit code: 0 all are valid, 1 some are not, 2 the paths could not be read.
"""
import json
import sys

import onnx


def flatten(value):
    """The strings of a nested list, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from flatten(item)
    else:
        raise ValueError(f"expected paths or lists of paths, got {json.dumps(value)}")


def check(path):
    """The checker's complaint about one file, or None. The path is handed over, not the bytes: so side files are found."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # whatever the checker raises is the answer for this file, not the end of the run
        return f"{type(error).__name__}: {error}".strip()
    return None


def main(arguments):
    try:
        paths = list(flatten(arguments or json.load(sys.stdin)))
    except ValueError as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 2
    valid = True
    for path in paths:
        error = check(path)
        valid &= error is None
        print(json.dumps({"path": path, "ok": error is None, "error": error}), flush=True)
    return 0 if valid else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
