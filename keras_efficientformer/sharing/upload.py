"""Uploads a folder to the Hugging Face hub as one commit, with every refusal told in one line. Room: sharing.

The transfer is huggingface_hub's, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and its stored tokens mean here what they
mean everywhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import first_line
from keras_efficientformer.sharing.finished_runs import PICTURES

# Files of an earlier upload that are no longer there would go with another model: these are removed.
REPLACED = ("labels.txt", *PICTURES)
REPLACED_SUFFIXES = (".tflite", ".tflite.json", ".mlpackage", ".mlpackage.json")


class UploadError(OSError):
    """A model could not be uploaded; the message says what the hub answered and what to do."""


@dataclass(frozen=True)
class Repository:
    """What a folder holds that is one repository.

    Attributes:
        repo_id: "owner/name".
        folder: where it lies.
        files: {path in it: bytes}.
        timm: whether timm loads it; of EfficientFormers those alone whose images have 7x7 tokens, as 224x224 has.
        license: that its card states, or None.
    """

    repo_id: str
    folder: str
    files: dict[str, int]
    timm: bool
    license: str | None


@dataclass(frozen=True)
class Upload:
    """What was uploaded.

    Attributes:
        repo_id, files, timm, license: as of `Repository`.
        url: of the repository's page.
        commit: 40 hexadecimal digits.
        removed: paths of an earlier upload that this model has not.
    """

    repo_id: str
    url: str
    commit: str
    files: dict[str, int]
    removed: tuple[str, ...]
    timm: bool
    license: str | None


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError for what cannot be a repository's "owner/name"."""
    owner, _, name = repo_id.partition("/")
    if not owner or not name:
        raise ValueError(
            f"A repository is OWNER/NAME, a user or organization on the hub and a name. Received: {repo_id}"
        )
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)


def check_token(token: str | None) -> None:
    """Raises UploadError where no token is given and none is found in the usual places."""
    import huggingface_hub as hub

    if (token or hub.get_token()) is None:
        raise UploadError(
            "Uploading needs a token that may write: log in (`hf auth login`), set HF_TOKEN, or pass `token`."
        )


def upload_repository(repository: Repository, *, private: bool, token: str | None, message: str) -> Upload:
    """Makes a repository on the hub where there is none, and commits a folder's files to its main branch.

    Args:
        repository: what it is to hold.
        private: whether only its owner may see it, where it is new.
        token: None takes the one that huggingface_hub finds.
        message: of the commit.

    Raises:
        UploadError: the hub refuses or cannot be reached, or the repository is public and `private` is True. Nothing is
            committed.
    """
    import huggingface_hub as hub

    repo_id, files = repository.repo_id, repository.files
    api = hub.HfApi(token=token, library_name="keras-efficientformer")
    # The hub, its HTTP client (another one in each major version) and hf_xet raise families of their own.
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = api.model_info(repo_id)
        if private and not there.private:
            raise UploadError(
                f"{repo_id} exists and is public: make it private in its settings, or choose another name."
            )
        names = [file.rfilename for file in there.siblings or ()]
        removed = tuple(name for name in names if name not in files and _is_replaced(name))
        additions = [hub.CommitOperationAdd(name, Path(repository.folder, name)) for name in files]
        deletions = [hub.CommitOperationDelete(name) for name in removed]
        commit = api.create_commit(repo_id, [*additions, *deletions], commit_message=message)
    except UploadError:
        raise
    except Exception as error:
        raise UploadError(f"{repo_id} could not be uploaded: {_reason(error, repo_id)}") from error
    return Upload(repo_id, str(url), commit.oid, files, removed, repository.timm, repository.license)


def _is_replaced(name: str) -> bool:
    return name in REPLACED or name.split("/")[0].endswith(REPLACED_SUFFIXES)


def _reason(error: BaseException, repo_id: str) -> str:
    """What went wrong and what to do, in a line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    # What fails in one of several transfers is wrapped.
    refusal = next((found for found in chain if isinstance(found, HfHubHTTPError)), None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network: unset it."
    if refusal is None:
        return f"{type(error).__name__}: {first_line(error)}. Check the connection to {constants.ENDPOINT}; try again."
    return _answer(refusal, repo_id, constants.ENDPOINT)


def _answer(refusal: Any, repo_id: str, endpoint: str) -> str:
    """What an HTTP error of the hub means."""
    status, said = refusal.response.status_code, refusal.server_message
    words = f"{endpoint} answered {status}" + (f" ({first_line(said)})" if said else "")
    owner = repo_id.partition("/")[0]
    advice = {
        401: "the token is unknown or has expired: log in again (`hf auth login`), or set HF_TOKEN",
        403: f"the token may not write for {owner}: take an owner of your own, or a token with the right to write",
        404: f"there is no {owner}, or the token may not see it: take an owner of your own",
    }
    return f"{words}: {advice.get(status, 'try again, or see the message')}."
