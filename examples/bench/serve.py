"""Times the server: requests of mixed preferences together and one at a time, and beside mlx_lm.server.

    python examples/bench/serve.py [--model smollm2] [--base PATH] [--rounds 3]

First the guided model: 16 clients that ask at 11 preferences and of the base, and one client alone; time to the first
token, alone, under load, and of a turn that follows a long one. Then the base alone, which mlx_lm.server serves as
well: seconds per token at 1 and at 16 streams, the two servers in turns. ``--base`` names it, a model that MLX computes
as it is (quantised models would be dequantised by one of the two).
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from parm_mlx.machine import describe_machine
from parm_mlx.named import MODELS

STREAMS = 16
TOKENS = 64
TURNS = 3  # requests of each client
QUESTION = "Tell me what you know of bread, number"
ALPHAS: list[Any] = ["base", *([i / 10, 1 - i / 10] for i in range(11))]
OURS = [sys.executable, "-m", "parm_mlx.cli.main", "serve"]
# The package loads the fast BLAS, which mlx_lm.server has no reason to do.
THEIRS = [sys.executable, "-c", "import parm_mlx; from mlx_lm.server import main; main()"]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def server(command: list[str]) -> Iterator[str]:
    """A server, and its address once it answers."""
    port = free_port()
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    httpx.get(f"{url}/v1/models", timeout=5)
                    break
                except httpx.TransportError:
                    assert process.poll() is None, "the server has ended"
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()


async def ask(client: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds to the first token and to the end, and tokens; a connection that is refused is tried again."""
    while True:
        try:
            return await _ask(client, asked)
        except httpx.TransportError:  # mlx_lm.server takes few connections at the same moment
            await asyncio.sleep(0.05)


async def _ask(client: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[float, float, int]:
    begun, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begun
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return first, time.perf_counter() - begun, tokens


def body(model: str, number: int, **more: Any) -> dict[str, Any]:
    """A request that streams."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"{QUESTION} {number}"}],
        "temperature": 1.0,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


async def guided(url: str, model: str, rounds: int) -> None:
    """Times the guided model."""
    limits = httpx.Limits(max_connections=2 * STREAMS)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        number = iter(range(10**6))

        def asked() -> dict[str, Any]:
            i = next(number)
            return body(model, i, alpha=ALPHAS[i % len(ALPHAS)])

        await ask(client, asked())
        together, alone, first_alone, first_loaded = [], [], [], []
        for _ in range(rounds):
            for streams, rates, firsts in ((STREAMS, together, first_loaded), (1, alone, first_alone)):
                found: list[tuple[float, float, int]] = []

                async def worker(turns: int, found: list[tuple[float, float, int]]) -> None:
                    for _ in range(turns):
                        found.append(await ask(client, asked()))

                begun = time.perf_counter()
                await asyncio.gather(*(worker(TURNS, found) for _ in range(streams)))
                rates.append(sum(tokens for _, _, tokens in found) / (time.perf_counter() - begun))
                firsts += [first for first, _, _ in found]
        ratio = [a / b for a, b in zip(together, alone, strict=True)]
        print(f"{model}, mixed preferences: {middle(together)} tokens/s for {STREAMS} clients, {middle(alone)} for one")
        print(f"  that is {middle(ratio)} times")
        print(f"  first token after {middle(first_alone, 1000)} ms alone, {middle(first_loaded, 1000)} ms under load")
        cold, warm = [], []
        for turn in range(rounds):
            long = {"role": "user", "content": f"{turn} " + "Bread is made of flour, water, salt and yeast. " * 12}
            messages = [long, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]
            cold.append((await ask(client, body(model, 1, messages=messages, max_tokens=4)))[0])
            messages = [*messages, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
            warm.append((await ask(client, body(model, 1, messages=messages, max_tokens=4)))[0])
        print(f"  first token of a long prompt after {middle(cold, 1000)} ms, of its next turn {middle(warm, 1000)} ms")


async def per_token(url: str, model: str, streams: int) -> float:
    """Seconds per token of each stream, after its first token."""
    limits = httpx.Limits(max_connections=2 * STREAMS)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        begun = time.perf_counter()
        found = await asyncio.gather(*(ask(client, body(model, number)) for number in range(streams)))
        return (time.perf_counter() - begun) / sum(tokens for _, _, tokens in found)


def middle(values: list[float], scale: float = 1.0) -> str:
    """The median, with the lowest and the highest."""
    low, half, high = min(values), statistics.median(values), max(values)
    return f"{scale * half:.3g} [{scale * low:.3g}, {scale * high:.3g}]"


def main() -> None:
    """Times both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--base", default=str(MODELS / "base"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(describe_machine())
    with server([*OURS, "--model", given.model]) as url:
        asyncio.run(guided(url, given.model, given.rounds))
    print(f"the base alone, {given.base.rpartition('/')[2]}, ms per token; ours, mlx_lm.server's, ours in its:")
    ours = [*OURS, "--model", given.base, "--alpha", "base", "--name", "base"]
    with server(ours) as our_url, server([*THEIRS, "--model", given.base]) as their_url:
        for streams in (1, STREAMS):
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            for turn in range(given.rounds + 1):
                for name, url, model in (("ours", our_url, "base"), ("theirs", their_url, given.base)):
                    seconds = asyncio.run(per_token(url, model, streams))
                    if turn:
                        times[name].append(seconds)
            ratio = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
            print(
                f"  {streams} streams: {middle(times['ours'], 1000)}, {middle(times['theirs'], 1000)}, {middle(ratio)}"
            )


if __name__ == "__main__":
    main()
