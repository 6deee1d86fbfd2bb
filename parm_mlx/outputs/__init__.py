"""Outputs: whole or not at all, and never in the place of anything that parm-mlx has not written.

Every directory that a command writes carries a marker (:mod:`parm_mlx.outputs.marker`), which lists its files.
``--force`` replaces a directory only if it has a marker and holds exactly those files, unchanged. Without ``--force``
nothing is replaced, not even what has appeared while the command ran.

An output is written into a hidden folder beside its place and renamed at the end, by a rename that fails if the name is
taken, or with ``--force`` by one that exchanges the two (:mod:`parm_mlx.outputs.partial`). Folders that a command works
in for long, or again and again, are claimed (:mod:`parm_mlx.outputs.workspace`).
"""

from parm_mlx.outputs.marker import MARKER, read_marker
from parm_mlx.outputs.partial import recover
from parm_mlx.outputs.whole import (
    check_apart,
    check_new,
    check_new_file,
    new_directory,
    new_file,
    remove_directory,
)
from parm_mlx.outputs.workspace import check_claim, claimed, mark, own, update, write_file

__all__ = [
    "MARKER",
    "check_apart",
    "check_claim",
    "check_new",
    "check_new_file",
    "claimed",
    "mark",
    "new_directory",
    "new_file",
    "own",
    "read_marker",
    "recover",
    "remove_directory",
    "update",
    "write_file",
]
