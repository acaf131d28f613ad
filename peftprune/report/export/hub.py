"""Sending an exported folder to the hub."""

from __future__ import annotations

from pathlib import Path

from peftprune.errors import RunError


def push(folder: Path, repo: str) -> str:
    """Create the repository where it is absent and upload the folder; needs a token (`hf auth login`).

    Args:
        folder: what `export` wrote.
        repo: OWNER/NAME.

    Returns:
        The address.

    Raises:
        RunError: when the hub refuses or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with peftprune")
    except Exception as error:
        # Network, login, rights and names fail in many ways; what was exported is safe on disk.
        reason = str(error).strip().split("\n")[0]
        raise RunError(
            f"push_to_hub: {repo!r} could not be written ({type(error).__name__}: {reason}). Log in with `hf auth "
            f"login` and export again, or upload the folder yourself; it is complete: {folder}"
        ) from error
    return str(address)
