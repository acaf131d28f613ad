"""Uploads an exported folder to the Hugging Face Hub."""

from pathlib import Path

from peftprune.errors import RunError


def push(folder: Path, repo: str) -> str:
    """Uploads a folder to the repository OWNER/NAME, created if missing, and returns its URL; requires a token.

    Raises RunError if the upload failed; the folder is unchanged.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with peftprune")
    except Exception as error:
        # The client raises many types for network, token, permission and name errors.
        reason = str(error).strip().split("\n")[0]
        raise RunError(
            f"push_to_hub: {repo!r} cannot be written ({type(error).__name__}: {reason}). Log in with `hf auth "
            f"login` and export again, or upload the folder yourself; it is complete: {folder}"
        ) from error
    return str(url)
