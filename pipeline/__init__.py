"""Plumage: a fine-grained image classification pipeline."""

import sys

__version__ = "0.1.0"

if sys.platform == "win32":
    sys.stderr.write(
        "error: Windows has no file locks and signals of POSIX, which Plumage needs; run it in WSL\n"
    )
    raise SystemExit(2)
