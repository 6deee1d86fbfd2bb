"""A server under load: many streams of different preferences, clients that go away, and many short requests.

    python tests/serve_load.py [--model smollm2] [--streams 64] [--soak 2000]

Every finished greedy answer is compared with the one that comes alone; memory in use is compared before and after.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from typing import Any

import httpx

QUESTIONS = (
    "How do I bake bread?",
    "What can I do on a rainy day?",
    "Tell me about thunder.",
    "How do I make a friend?",
    "Why do cats purr?",
)
ALPHAS: list[Any] = ["base", *([round(i / 10, 1), round(1 - i / 10, 1)] for i in range(11))]
LEAVING = 3  # every third client leaves in the middle


def body(model: str, number: int, tokens: int, stream: bool) -> dict[str, Any]:
    question = f"{QUESTIONS[number % len(QUESTIONS)]} {'Please. ' * (number % 4)}"
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "alpha": ALPHAS[number % len(ALPHAS)],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": stream,
    }


async def streamed(client: httpx.AsyncClient, asked: dict[str, Any], leaves_after: int | None) -> str | None:
    """The text of a stream; None where the client left it."""
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += event["choices"][0]["delta"].get("content", "")
            if leaves_after is not None and len(text) >= leaves_after:
                return None
    return text


async def whole(client: httpx.AsyncClient, asked: dict[str, Any]) -> str:
    while True:
        response = await client.post("/v1/chat/completions", json=asked)
        if response.status_code != 429:
            assert response.status_code == 200, response.text
            return str(response.json()["choices"][0]["message"]["content"])
        await asyncio.sleep(float(response.headers["retry-after"]) / 4)


async def memory(client: httpx.AsyncClient, process: int) -> tuple[int, int]:
    """Bytes that MLX holds, without the kept prompts, and bytes that the process has in memory."""
    text = (await client.get("/metrics")).text
    found = {name: int(value) for name, value in re.findall(r"^parm_mlx_(\w+) (\d+)$", text, re.M)}
    rss = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True).stdout
    return found["active_memory_bytes"] - found["prompt_cache_bytes"], int(rss) * 1024


async def watch_health(client: httpx.AsyncClient, slowest: list[float]) -> None:
    while True:
        begun = time.monotonic()
        assert (await client.get("/health")).json()["status"] == "ok"
        slowest.append(time.monotonic() - begun)
        await asyncio.sleep(0.2)


async def run(url: str, model: str, process: int, streams: int, soak: int, tokens: int) -> None:
    limits = httpx.Limits(max_connections=streams + 8)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        for number in range(len(ALPHAS)):
            await whole(client, body(model, number, 4, False))
        await asyncio.sleep(10)
        before = await memory(client, process)
        slowest: list[float] = []
        health = asyncio.create_task(watch_health(client, slowest))
        draw = random.Random(0)
        asked = [body(model, number, tokens - draw.randrange(tokens // 2), True) for number in range(streams)]
        leaving = [draw.randrange(1, 40) if number % LEAVING == 0 else None for number in range(streams)]
        begun = time.monotonic()
        texts = await asyncio.gather(*map(streamed, [client] * streams, asked, leaving))
        seconds = time.monotonic() - begun
        finished = [(each, text) for each, text in zip(asked, texts, strict=True) if text is not None]
        health.cancel()
        await asyncio.sleep(10)
        after = await memory(client, process)
        different = 0
        for each, text in finished:
            different += await whole(client, {**each, "stream": False}) != text
        print(f"{streams} streams in {seconds:.1f} s, {len(finished)} finished, {different} differ from those alone")
        print(f"health: {len(slowest)} answers, the slowest after {max(slowest):.2f} s")
        print(f"MLX holds {before[0]:,} and then {after[0]:,} bytes: {after[0] / before[0]:.3f} times")
        print(f"the process has {before[1]:,} and then {after[1]:,} bytes")
        for _ in range(2 if soak else 0):
            begun, left = time.monotonic(), list(range(soak // 2))

            async def worker(left: list[int]) -> None:
                while left:
                    await whole(client, body(model, left.pop(), 4, False))

            await asyncio.gather(*(worker(left) for _ in range(streams)))
            print(f"{soak // 2} short requests in {time.monotonic() - begun:.1f} s, none lost")
            await asyncio.sleep(10)
            held, resident = await memory(client, process)
            print(f"MLX holds {held:,} bytes, the process has {resident:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--soak", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=80)
    given = parser.parse_args()
    command = [sys.executable, "-m", "parm_mlx.cli.main", "serve", "--model", given.model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split("served at ")[1].split()[0]
        try:
            asyncio.run(run(url, given.model, server.pid, given.streams, given.soak, given.max_tokens))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
