"""Outputs: whole or not at all, and never in the place of anything that parm-mlx has not written (docs/files.md).

A directory that a command writes lists its files in a marker; ``--force`` replaces it only if it holds exactly those,
unchanged. An output is written into a hidden folder beside its place (``partial``) and renamed at the end, by a rename
that fails if the name is taken, or exchanges the two. Folders that a command works in are claimed (``workspace``).
"""

from parm_mlx.outputs.marker import MARKER, read_marker, written
from parm_mlx.outputs.partial import recover
from parm_mlx.outputs.whole import check_apart, check_new, check_new_file, new_directory, new_file, remove_directory
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
    "written",
]
