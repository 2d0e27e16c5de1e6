"""Downloads pretrained weights and checks their sha256. Room: conversion.

`PRETRAINED` lists the checkpoints, their places and accuracies; `download` fetches one of them, and
`download_repository` the checkpoint in any repository of the hub. The transfer and the
cache are huggingface_hub's, so HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE and its tokens mean here what they
mean everywhere. What is added here: the sha256 of every file is checked on every load, passing troubles are retried,
and whatever else goes wrong is one `DownloadError` that says what to do. Nothing here reads tensors or falls back to
random weights.
"""

import contextlib
import errno
import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from keras_efficientformer.conversion.hub_config import CONFIGS
from keras_efficientformer.errors import first_line
from keras_efficientformer.variants import class_name

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# These seconds pass between the attempts of one run; huggingface_hub itself resumes a cut transfer, but not after a
# reset connection, an answer 5xx to the transfer, or a lost HEAD request.
PAUSES = (1.0, 2.0)

# The first of these that a repository holds is taken.
CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")
SHA256_DIGITS = 64

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DownloadError(OSError):
    """Pretrained weights could not be brought, or are not what they should be; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file on the Hugging Face hub.

    Attributes:
        repo: the repository, "owner/name".
        filename: the file in it.
        revision: what is asked for: a full commit (40 hexadecimal digits) where one is known, else a branch or tag.
        commit: how the commit that `revision` resolves to must begin; "" takes any.
        sha256: of the file, 64 hexadecimal digits; None where nobody has published it, and the hub's own is the check.
        megabytes: its size in 10^6 bytes, for messages; None where it is not known.
    """

    repo: str
    filename: str
    revision: str = "main"
    commit: str = ""
    sha256: str | None = None
    megabytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pretrained(HubFile):
    """One published checkpoint on the Hugging Face hub.

    Attributes:
        top1: ImageNet-1k top-1 accuracy in percent at 224x224.
        top1_source: who published that number.
        crop: the centre crop's share of the resized image's side, in (0, 1], under which it was measured.
        otherwise: the same weights in another file, used where `revision` is gone or resolves to another commit.
    """

    top1: float
    top1_source: str
    crop: float
    otherwise: "Pretrained | None" = None


TIMM_RESULTS = "timm, results/results-imagenet.csv"
PAPER = "arXiv 2206.01191, table 1"

L1_300_PICKLE = Pretrained(
    repo="snap-research/efficientformer-l1-300",
    filename="pytorch_model.bin",
    megabytes=49.4,
    top1=79.2,
    top1_source=PAPER,
    crop=0.875,
)


def _v2(variant: str, megabytes: float, top1: float, revision: str = "main", sha256: str | None = None) -> Pretrained:
    return Pretrained(
        repo=f"timm/efficientformer{variant}.snap_dist_in1k",
        filename="model.safetensors",
        megabytes=megabytes,
        top1=top1,
        top1_source=TIMM_RESULTS,
        crop=0.95,
        revision=revision,
        sha256=sha256,
    )


PRETRAINED: dict[tuple[str, str], Pretrained] = {
    ("l1", "imagenet"): Pretrained(
        repo="timm/efficientformer_l1.snap_dist_in1k",
        filename="model.safetensors",
        megabytes=49.3,
        top1=80.498,
        top1_source=TIMM_RESULTS,
        crop=0.95,
    ),
    # The paper's headline model, trained for 300 epochs. The safetensors file stands in a pull request that was never
    # merged, so the branch is trusted only while it is that commit.
    ("l1", "imagenet-300"): Pretrained(
        repo="snap-research/efficientformer-l1-300",
        filename="model.safetensors",
        megabytes=49.3,
        top1=79.2,
        top1_source=PAPER,
        crop=0.875,
        revision="refs/pr/5",
        commit="3606915",
        otherwise=L1_300_PICKLE,
    ),
    ("l3", "imagenet"): Pretrained(
        repo="timm/efficientformer_l3.snap_dist_in1k",
        filename="model.safetensors",
        megabytes=126.0,
        top1=82.550,
        top1_source=TIMM_RESULTS,
        crop=0.95,
        revision="ca929ef48f056232098ad9226a69e4c29a00cc46",
        sha256="ab0c5bfd7c1863e6b7625a08615d0ea88b6acb978d30fdd0fbb24e2e12da3e2a",
    ),
    ("l7", "imagenet"): Pretrained(
        repo="timm/efficientformer_l7.snap_dist_in1k",
        filename="model.safetensors",
        megabytes=329.0,
        top1=83.382,
        top1_source=TIMM_RESULTS,
        crop=0.95,
        revision="986958e4b0ef7fa24ac6a9bbbaead04ed007e278",
    ),
    ("v2_s0", "imagenet"): _v2("v2_s0", 14.7, 76.118),
    ("v2_s1", "imagenet"): _v2("v2_s1", 25.1, 79.688),
    ("v2_s2", "imagenet"): _v2(
        "v2_s2",
        51.4,
        82.166,
        revision="1c56a76355000c79568559d34ba3fa24416b5107",
        sha256="c46c28768173ee0e518b7cd94af1e832cb88d2115068a81386c08650cc22a24f",
    ),
    ("v2_l", "imagenet"): _v2(
        "v2_l",
        106.2,
        83.632,
        revision="092a1c107ec0fdc2207a470f81c696022f17a42e",
        sha256="a92de90055b116562f85322e596494829e54d86c56471652e3c07ed39957c92a",
    ),
}


def names(variant: str | None) -> tuple[str, ...]:
    """Returns the names of the pretrained weights of a published variant; of any other network there are none."""
    return tuple(name for known, name in PRETRAINED if known == variant)


def unknown_weights(variant: str | None, weights: object) -> ValueError:
    """Returns the error for a `weights` that is neither one of the variant's names nor a file, with what there is."""
    network = class_name(variant) if variant else "a network of these depths and widths"
    known = ", ".join(f'"{name}"' for name in names(variant)) or "none"
    return ValueError(
        "The `weights` argument should be either `None` (random initialization), the name of pretrained weights "
        f"({network} has {known}), or the path to the weights file to be loaded. Received: weights={weights}"
    )


def download(variant: str, name: str) -> Path:
    """Returns the local file of the pretrained weights `name`, downloading it the first time.

    A file that the cache holds is used without asking the network. Each call computes the file's sha256, so damage on
    disk is caught: 0.3 s for L7's 329 MB where the processor has SHA instructions, about a second elsewhere. It is
    compared with the one in `PRETRAINED` and with the one that the hub states (the name of the file's blob in the
    cache; where the file system has no symbolic links the cache does not keep it, and a cached file is compared with
    the pinned one alone). Processes that load at once wait for each other in huggingface_hub's file lock.

    Args:
        variant: a key of `variants.VARIANTS` or `VARIANTS_V2`, such as "l1" or "v2_s0".
        name: "imagenet", or for "l1" also "imagenet-300".

    Returns:
        Path of a complete, verified checkpoint: .safetensors, or .bin where `PRETRAINED` names one.

    Raises:
        ValueError: there are no such weights for this variant; the message lists what there is.
        DownloadError: anything else. No partial or damaged file is left in the cache.
    """
    if name not in names(variant):
        raise unknown_weights(variant, name)
    entry = _choose(PRETRAINED[variant, name])
    path = _from_cache(entry)
    stated = _blob_name(path) if path else None
    if path is None:
        path, stated = _from_hub(entry)
    _verify(entry, path, stated)
    return path


def download_repository(repo: str, revision: str = "main") -> Path:
    """Returns the local file of the checkpoint in a repository of the hub, downloading it the first time.

    What states how its images are normalised (`hub_config.CONFIGS`) is brought into the same folder.

    Args:
        repo: "owner/name".
        revision: a branch, tag or commit.

    Raises:
        DownloadError: it holds none of `CHECKPOINTS`, or as `download`.
    """
    files = [HubFile(repo=repo, filename=name, revision=revision) for name in CHECKPOINTS]
    cached = next(filter(None, map(_from_cache, files)), None)
    if cached is not None:
        return cached
    found = next(filter(_is_on_hub, files), None)
    if found is None:
        raise DownloadError(f"{repo} at {revision} holds no checkpoint: expected one of {', '.join(CHECKPOINTS)}.")
    # They come first, so that no checkpoint stands in the cache without them.
    for name in CONFIGS:
        config = HubFile(repo=repo, filename=name, revision=revision)
        if _is_on_hub(config):
            _from_hub(config)
    path, stated = _from_hub(found)
    # Of files that are not stored apart the hub states git's own sum, which is shorter.
    _verify(found, path, stated if stated and len(stated) == SHA256_DIGITS else None)
    return path


def repository_file(repo: str, filename: str, revision: str = "main") -> Path | None:
    """Returns the local file of one in a repository of the hub, downloading it the first time; None if it is not there.

    Raises:
        DownloadError: it could not be brought, or the hub could not be asked.
    """
    file = HubFile(repo=repo, filename=filename, revision=revision)
    cached = _from_cache(file)
    return cached if cached or not _is_on_hub(file) else _from_hub(file)[0]


def _is_on_hub(file: HubFile) -> bool:
    return _retry(lambda: _commit_on_hub(file), file) is not None


def _choose(entry: Pretrained) -> Pretrained:
    """Returns the entry, or the other copy of the same weights where its revision is not the commit it has to be."""
    if entry.otherwise is None or _from_cache(entry):
        return entry
    if _from_cache(entry.otherwise):
        return entry.otherwise
    found = _retry(lambda: _commit_on_hub(entry), entry)
    if found and found.startswith(entry.commit):
        return entry
    warnings.warn(
        f"{entry.filename} at {entry.revision} of {entry.repo} is {f'of commit {found}' if found else 'not there'}, "
        f"and commit {entry.commit} was expected: using {entry.otherwise.filename} of {entry.otherwise.revision}, "
        "which holds the same weights.",
        stacklevel=3,
    )
    return entry.otherwise


def _commit_on_hub(entry: HubFile) -> str | None:
    """Returns the commit that the entry's revision is now, None where the revision or the file is not there."""
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    try:
        return hub.get_hf_file_metadata(_url(entry)).commit_hash
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        return None


def _from_cache(entry: HubFile) -> Path | None:
    import huggingface_hub as hub

    found = hub.try_to_load_from_cache(entry.repo, entry.filename, revision=entry.revision)
    # Otherwise it is None, or the library's mark for a file that is known not to exist.
    if not isinstance(found, str):
        return None
    path = Path(found)
    return path if path.parent.name.startswith(entry.commit) else None


def _from_hub(entry: HubFile) -> tuple[Path, str | None]:
    """Returns the downloaded file and the sha256 that the hub states for it (the ETag, for files of this size)."""
    import huggingface_hub as hub

    def attempt() -> tuple[Path, str | None]:
        # The hub is asked first because hf_hub_download, where it cannot reach it, tries for minutes before it says so.
        stated = hub.get_hf_file_metadata(_url(entry)).etag
        return Path(hub.hf_hub_download(entry.repo, entry.filename, revision=entry.revision)), stated

    return _retry(attempt, entry)


def _retry(action: Callable[[], Result], entry: HubFile) -> Result:
    pauses = iter(PAUSES)
    while True:
        try:
            return action()
        # The hub, its HTTP client (another one in each major version) and hf_xet raise families of their own.
        except Exception as error:
            pause = next(pauses, None)
            if pause is None or _is_final(error):
                raise DownloadError(_explain(error, entry)) from error
            logger.warning("%s: trying again in %g s", first_line(error), pause)
            time.sleep(pause)


def _is_final(error: Exception) -> bool:
    """Whether another attempt would end the same way: a refusal by the hub, by offline mode or by the file system."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code < 500 and error.response.status_code not in (408, 429)
    return isinstance(error, OfflineModeIsEnabled) or getattr(error, "errno", None) is not None


def _explain(error: Exception, entry: HubFile) -> str:
    return f"{entry.filename} of {entry.repo} could not be downloaded: {_reason(error, entry)}\n{_by_hand(entry)}"


def _reason(error: Exception, entry: HubFile) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cache = constants.HF_HUB_CACHE
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE forbids the network, and the cache {cache} does not hold it.\nUnset it to download."
    if isinstance(error, HfHubHTTPError) and _is_final(error):
        return (
            f"{constants.ENDPOINT} answered {error.response.status_code} ({type(error).__name__}).\nCheck HF_ENDPOINT "
            "and, where the server asks for one, the token (`hf auth login`)."
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        needs = f", and the file needs {entry.megabytes:.1f} MB" if entry.megabytes else ""
        return (
            f"the disk of the cache {cache} is full ({error}){needs}.\nFree some "
            "space, or set HF_HOME to a folder on a larger disk, and start again."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"the cache {cache} cannot be used: {error}.\nMend it, or set HF_HOME to another folder and start again."
    return (
        f"{len(PAUSES) + 1} attempts failed, the last with {type(error).__name__}: {first_line(error)}\n"
        f"Check the connection to {constants.ENDPOINT} and start again."
    )


def _by_hand(entry: HubFile) -> str:
    from huggingface_hub import constants

    folder = "models--" + entry.repo.replace("/", "--")
    return (
        f"To bring the file by hand, fetch {_url(entry)}\non a connected machine and pass "
        f'weights="/path/to/{entry.filename}"; or run there\n'
        f"`hf download {entry.repo} {entry.filename} --revision {entry.revision}`\n"
        f"and copy the folder {folder} from its cache into {constants.HF_HUB_CACHE}."
    )


def _url(entry: HubFile) -> str:
    import huggingface_hub as hub

    return hub.hf_hub_url(entry.repo, entry.filename, revision=entry.revision)


def _verify(entry: HubFile, path: Path, stated: str | None) -> None:
    """Raises DownloadError, and takes the file out of the cache, unless its sha256 is the pinned and the stated one."""
    found = _sha256(path)
    expected = {"pinned in this version of keras_efficientformer": entry.sha256, "stated by the hub": stated}
    wrong = [f"{sha256} ({who})" for who, sha256 in expected.items() if sha256 not in (None, found)]
    if not wrong:
        return
    _remove(path)
    raise DownloadError(
        f"{entry.filename} of {entry.repo} is damaged or not the expected file:\nits sha256 is {found}, and expected "
        f"was\n{' and '.join(wrong)}.\nIt was removed from the cache ({path}): start again to download it anew, and "
        f"if the hashes differ again do not trust {_url(entry)}.\n{_by_hand(entry)}"
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DownloadError(f"The cached file {path} cannot be read: {error}. Remove it and start again.") from error


def _blob_name(path: Path) -> str | None:
    """Returns the ETag that the hub stated when the file came: the cache links to a blob of that name."""
    # Only one link is followed, as the blob can be a link into a store shared by all repositories, under another name.
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _remove(path: Path) -> None:
    """Removes a cached file with the links that lead to it."""
    # Another process may have found the same damage and removed the file.
    with contextlib.suppress(FileNotFoundError):
        while path.is_symlink():
            target = path.parent / os.readlink(path)
            path.unlink()
            path = target
        path.unlink()
