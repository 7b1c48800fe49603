"""``python -m onnx_prune`` is ``onnx-prune``."""

import subprocess
import sys

from ._program import environment, find_program

if __name__ == "__main__":
    sys.exit(subprocess.call([find_program(), *sys.argv[1:]], env=environment()))
