"""Uploading a finished folder to the Hugging Face hub."""

from pathlib import Path

from parm_mlx.errors import InputError, RunError, first_line
from parm_mlx.files import is_hub_id

_OURS = [".parm-mlx*"]  # notes of parm-mlx on its own files


def check_upload(repo_id: str | None) -> None:
    """Checks what an upload needs before the work that it is for; nothing is sent. None asks for no upload.

    Raises:
        InputError: It is no id of a repository, or this machine is not logged in.
    """
    if repo_id is None:
        return
    if not is_hub_id(repo_id):
        raise InputError(f"--upload-repo {repo_id}: not the id of a repository, owner/name")
    from huggingface_hub import get_token

    if get_token() is None:
        raise InputError("--upload-repo needs an account on the hub", hint="log in first: hf auth login")


def upload(folder: Path, repo_id: str, card: str | None = None) -> str:
    """Uploads a folder, with ``card`` in place of its README.md where one is given; returns the repository's address.

    Raises:
        RunError: The hub refuses it or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo_id, exist_ok=True)
        own = [] if card is None else ["README.md"]
        api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=_OURS + own)
        if card is not None:
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id)
    except Exception as error:  # of its client for HTTP, too
        raise RunError(
            f"{folder} is finished, but could not be uploaded: {first_line(error)}",
            hint=f"upload it later: hf upload {repo_id} {folder}",
        ) from error
    return str(url)
