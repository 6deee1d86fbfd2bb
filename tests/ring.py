"""The ring backend on this machine, as ``mlx.launch`` sets it up."""

import json
import socket
from pathlib import Path


def ring(folder: Path, size: int) -> dict[str, str]:
    """The environment of so many processes over loopback, but for their ranks; the file of hosts lies in the folder."""
    sockets = [socket.socket() for _ in range(size)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    hosts = [[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]
    for one in sockets:
        one.close()
    file = folder / "hosts.json"
    file.write_text(json.dumps(hosts))
    return {"MLX_HOSTFILE": str(file)}
