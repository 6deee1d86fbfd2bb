"""How a server listens, and what it allows."""

from dataclasses import dataclass
from typing import Literal

from parm_mlx.ranges import BATCH, COUNT, MAX_TOKENS, PORT, SECONDS, SIZE
from parm_mlx.settings import setting

LOCAL = ("127.0.0.1", "localhost", "::1")
MIB = 1 << 20

MAX_BODY = 4 * MIB  # bytes of a request
MAX_MESSAGES = 1000
MAX_ANSWERS = 16  # of one request, n
MAX_STOPS = 16
MAX_STOP = 200  # characters of a stop string
MAX_SCHEMA = 64 << 10  # bytes
MAX_DEPTH = 64  # of JSON
MAX_FIELDS = 4096  # of one object
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class ServerOptions:
    """Address and limits of a server."""

    host: str = setting(
        "127.0.0.1", "Address to listen at. Another one than this machine's own needs --api-key, and --allow-host."
    )
    port: int = setting(8080, "Port to listen at; 0 takes a free one.", PORT)
    api_key: str | None = setting(
        None, "Key that clients must send, as OpenAI's do (Authorization: Bearer KEY).", default_text="none", env=True
    )
    allow_origin: str | None = setting(
        None, "Origin of web pages elsewhere that may ask, as http://localhost:3000.", default_text="none"
    )
    allow_host: str | None = setting(
        None, "Name in the Host header that is taken beside localhost and --host; * takes any.", default_text="none"
    )
    batch_size: int = setting(16, "Most answers that are generated at the same time.", BATCH)
    max_queue: int = setting(64, "Most requests that wait; more are refused with status 429.", COUNT)
    prompt_cache_size: int = setting(
        1024, "MiB that prompts and answers are kept in, so that what follows them need not be read again.", SIZE
    )
    max_prompt_tokens: int | None = setting(None, "Longest prompt, in tokens.", MAX_TOKENS, default_text="the models'")
    timeout: float = setting(600.0, "Seconds after which an answer is ended.", SECONDS)
    stall_timeout: float = setting(
        120.0, "Seconds without progress after which the process ends, with an error.", SECONDS
    )
    log: Literal["none", "requests"] = setting("none", "Print a line for every request, without its content.")
