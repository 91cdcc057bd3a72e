"""From a folder or a hub id to a local folder: downloads what a checkpoint needs, by huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

from nemotron_errors import CheckpointError

from nemotron_export.files.untrusted import quote
from nemotron_export.installation.extras import require

__all__ = ["resolve"]

# organisation/name, each of letters, digits, `-`, `_` and `.`
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$", re.ASCII)

_WEIGHTS = ["*.safetensors", "model.safetensors.index.json"]
_SMALL = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE*",
    "LICENCE*",
    "license*",
    "NOTICE*",
]
_DOWNLOADERS = {"huggingface_hub", "httpcore", "httpcore2", "httpx", "httpx2", "requests"}
# A pattern's `*` matches slashes too: other formats often lie in folders of their own.
_IGNORE = ["*/*"]


def resolve(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """Returns a local folder: the one given, or the snapshot of a hub id (`organisation/name`).

    Something that exists here is always the folder, never an id; `revision` belongs to ids alone.

    Args:
        path_or_id: a folder or a hub id.
        revision: a branch, tag or commit.
        token: an access token; None takes the one that huggingface_hub stored at login.
        offline: take what the local cache has and ask no server.
        weights: download the weights, too, and not just the small files (config, tokenizer, licence).

    Raises:
        CheckpointError: nothing of that name here or on the hub, no access, no network, not in the cache.
        MissingDependencyError: huggingface_hub is not installed.
    """
    path, name = Path(path_or_id), str(path_or_id)
    if not _exists(path) and isinstance(path_or_id, str) and _HUB_ID.match(name):
        return _download(name, revision, token, offline, weights)
    if revision is not None:
        found = f"revision {quote(revision)} of a local folder"
        remedy = "leave the revision out, or give organisation/name"
        raise CheckpointError(found, "a revision of a hub id", remedy, where=name)
    if not _exists(path):
        raise CheckpointError(
            "no such folder", "a checkpoint's folder, or a hub id (organisation/name)", "check the spelling", where=name
        )
    return path


def _exists(path: Path) -> bool:
    try:
        # A broken link or a folder without permission is there: opening it tells what is wrong.
        return path.exists() or path.is_symlink()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _download(name: str, revision: str | None, token: str | bool | None, offline: bool, weights: bool) -> Path:
    require("huggingface_hub", f"to find {name}, which is no folder here")
    import huggingface_hub
    from huggingface_hub import errors

    def refusal(found: str, expected: str, remedy: str) -> CheckpointError:
        return CheckpointError(found, expected, remedy, where=name)

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            local_files_only=offline,
            allow_patterns=_SMALL + _WEIGHTS if weights else _SMALL,
            ignore_patterns=_IGNORE,
        )
    except errors.GatedRepoError:
        remedy = "accept its terms on its page, then `hf auth login` or pass a token"
        raise refusal("a gated repository", "access to it", remedy) from None
    except errors.RepositoryNotFoundError:
        remedy = "check the spelling; for a private one `hf auth login` or pass a token"
        raise refusal("neither a folder here nor a repository on the hub", "one of the two", remedy) from None
    except errors.RevisionNotFoundError:
        remedy = "look at the repository's branches, tags and commits"
        raise refusal(f"no revision {quote(revision)}", "a branch, tag or commit", remedy) from None
    except errors.HFValidationError as error:
        raise refusal(f"no valid hub id ({_line(error)})", "organisation/name", "check the spelling") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if offline or isinstance(error, errors.OfflineModeIsEnabled):
            found, remedy = "no complete copy in the local cache", "download it once with a network, or give a folder"
        else:
            found, remedy = (
                "no answer from the hub and no copy in the local cache",
                "check the network, or give a folder",
            )
        raise refusal(found, "a folder here, or a hub id that can be reached", remedy) from None
    except errors.HfHubHTTPError as error:
        remedy = "try again later, or give a folder"
        raise refusal(f"an error of the hub ({_line(error)})", "the repository's files", remedy) from None
    except Exception as error:
        # The HTTP client that huggingface_hub stands on differs by version; its errors are no OSErrors everywhere.
        client = type(error).__module__.partition(".")[0] in _DOWNLOADERS
        if not client and not isinstance(error, OSError):
            raise
        remedy = "check the network and the disk, or give a folder"
        raise refusal(f"a failed download ({_line(error)})", "the repository's files", remedy) from None
    return Path(folder)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
