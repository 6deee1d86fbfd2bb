"""``parm-mlx serve``: a server for OpenAI's and Anthropic's clients, and a page."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

from parm_mlx.cli import console
from parm_mlx.cli.options import BASE_ALONE, Alpha, MaxTokens, ServedModelOptions, flag, grouped
from parm_mlx.cli.session import open_session, read_alpha, sharded
from parm_mlx.errors import ModelError
from parm_mlx.serving.settings import ServerOptions
from parm_mlx.settings import TokenChoice

if TYPE_CHECKING:
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.serving.engine import Engine


@grouped
def serve(
    alpha: Alpha = None,
    models: ServedModelOptions = ServedModelOptions(),
    sampling: TokenChoice = TokenChoice(temp=0.7),
    max_tokens: MaxTokens = 256,
    server: ServerOptions = ServerOptions(),
    name: Annotated[str | None, flag("Name of the model, for clients.", default_text="that of --model")] = None,
    open_page: Annotated[bool, flag("Open the page in a browser.", name="--open")] = False,
) -> None:
    """Serve models to OpenAI's and Anthropic's clients, with another preference in every request.

    Also serves a page. alpha, sampling and --max-tokens are those of requests that do not say.

    \b
    Examples:
      parm-mlx serve --open
      parm-mlx serve --model base --parm parm --alpha helpful=0.8,harmless=0.2 --port 9000
      curl http://localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
          -d '{"model": "smollm2", "alpha": {"cheer": 1}, "messages": [{"role": "user", "content": "hello"}]}'
    """
    try:
        from parm_mlx.serving.server import check_options
    except ModuleNotFoundError as missing:
        hint = "pip install 'parm-mlx[serve]', or from a clone pip install '.[serve]'"
        raise ModelError(f"serve needs the extra serve ({missing.name} is not installed)", hint=hint) from None
    from parm_mlx.guidance.sampling import Sampling
    from parm_mlx.serving.engine import Engine
    from parm_mlx.serving.together import FollowingEngine, LeadingEngine

    check_options(server)
    same = {"batch_size": server.batch_size, "prompt_cache_size": server.prompt_cache_size}
    with sharded(models.shard, **same) as shard:
        load = partial(open_session, models, alone=alpha == BASE_ALONE, shard=shard)
        if shard is not None and not shard.main:
            FollowingEngine(load, server).follow()
        else:
            engine = Engine(load, server) if shard is None else LeadingEngine(load, server)
            _serve(engine, alpha, Sampling(**asdict(sampling)), max_tokens, server, name, open_page)


def _serve(
    engine: "Engine",
    alpha: str | None,
    sampling: "Sampling",
    max_tokens: int,
    server: ServerOptions,
    name: str | None,
    open_page: bool,
) -> None:
    """Serves what an engine answers, until it is told to end."""
    from parm_mlx.serving.server import listen, run
    from parm_mlx.serving.service import Service
    from parm_mlx.serving.steering import Menu

    with listen(server) as listener:
        engine.start()
        session = engine.session
        default = read_alpha(alpha, session.objectives)
        beta = session.model.beta if session.objectives and len(session.betas) == 1 else None
        served = name or Path(session.base).name
        menu = Menu(served, session.objectives, default, beta)
        service = Service(engine, menu, sampling, max_tokens, server)

        def ready(address: str) -> None:
            console.echo(f"{served} is served at {address}   the page: {address}/   the API: {address}/v1")
            if open_page:
                import webbrowser

                # Apart, as a browser in the terminal does not return, and the server begins only now.
                Thread(target=webbrowser.open, args=[address], daemon=True).start()

        run(service, listener, ready, console.note)
