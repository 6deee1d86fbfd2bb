"""The model card of a converted model or adapter that is uploaded."""

from pathlib import Path

from parm_mlx.errors import ModelError
from parm_mlx.files import is_hub_id, read_json


def card(folder: Path, source: str, repo_id: str) -> str:
    """Returns a card in Markdown for what ``source``, a path or hub id, was converted to."""
    public = is_hub_id(source) and not Path(source).is_dir()
    origin = source if public else Path(source).name
    adapter = (folder / "adapter_config.json").is_file()
    config = read_json(folder / ("adapter_config.json" if adapter else "config.json"), f"result {folder}", ModelError)
    quantized = config.get("quantization")
    bits = f", {quantized['bits']} bits in groups of {quantized['group_size']}" if isinstance(quantized, dict) else ""
    lines = ["---", f"library_name: {'parm-mlx' if adapter else 'mlx'}"]
    lines += [f"base_model: {origin}"] if public and not adapter else []
    lines += [f"tags: [{'parm, pblora, mlx' if adapter else 'mlx'}]", "---", "", f"# {repo_id.partition('/')[2]}", ""]
    lines.append(f"`{origin}`, converted by parm-mlx{bits}. Its licence is that of the original.")
    command = f"--parm {repo_id}" if adapter else f"--model {repo_id} --alpha base"
    return "\n".join([*lines, "", "```", f"parm-mlx chat {command}", "```", ""])
