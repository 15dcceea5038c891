"""The files of one repository at one commit: listed once, downloaded when used, checked by hash.

Everything goes through huggingface_hub and its cache, by commit. What a commit holds is noted in
that cache too (`models--user--repo/pemt/<commit>.json`), so that a pinned commit needs no network
once its files are there, on this machine or on another one that the cache was copied to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pemt.errors import ExpertError
from pemt.experts.address import HubAddress
from pemt.experts.writing import NO_SPACE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT = 30.0  # seconds for one answer of the Hub's API
_THREADS = 8
_UNSAFE = re.compile(r"^/|^[A-Za-z]:|\\|[\x00-\x1f\x7f]|(^|/)\.{0,2}(/|$)")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """What the Hub says about a file.

    Args:
        size: in bytes.
        sha256: of the content; None for a file that is not in LFS.
        blob: git's hash of a file that is not in LFS.
    """

    size: int | None
    sha256: str | None
    blob: str | None


class HubFiles:
    """A repository at a commit.

    Args:
        address: where; its branch or tag is resolved here, once.
        endpoint: the Hub's URL; by default `HF_ENDPOINT` or huggingface.co.
        cache_dir: of huggingface_hub; by default `HF_HUB_CACHE` or its usual place.
        token: of the Hub; by default the one that `hf auth login` saved.

    Raises:
        ExpertError: no such repository or revision, no connection and not in the cache, or a file
            name that leads out of the repository.
    """

    def __init__(
        self,
        address: HubAddress,
        *,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
    ) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self.address = address
        self.token = token
        self.endpoint = endpoint
        # huggingface_hub reads the environment when it is imported, which may have been earlier
        cache = cache_dir or os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
        self.cache_dir = Path(cache).expanduser().absolute()
        self._notes = (
            self.cache_dir / repo_folder_name(repo_id=address.repo, repo_type="model") / "pemt"
        )
        noted = self._noted()
        if noted is None:
            self.commit, self.files = self._ask()
            self._note()
        else:
            self.commit, self.files = str(address.revision), noted
        for path in self.files:
            if _UNSAFE.search(path):
                raise ExpertError(
                    f"{address.repo} lists a file {path!r}, which leads out of the repository.",
                    "do not use this repository: its listing was tampered with",
                )

    def api(self) -> HfApi:
        """The client that asks this endpoint."""
        return client(self.endpoint, self.token)

    def download(self, paths: Iterable[str]) -> dict[str, Path]:
        """Where files lie in the cache; those that are not there are downloaded and checked.

        Raises:
            ExpertError: a file cannot be had, or is not what the Hub's listing says; it is then
                removed from the cache.
        """
        wanted = list(paths)
        with ThreadPoolExecutor(_THREADS) as pool:
            return dict(zip(wanted, pool.map(self._download, wanted), strict=True))

    def _download(self, path: str) -> Path:
        with self._explained(f"The file {path} of {self.address.repo}"):
            found = Path(
                self.api().hf_hub_download(
                    self.address.repo, path, revision=self.commit, cache_dir=self.cache_dir
                )
            )
        problem = _differs(found, self.files[path])
        if problem:
            blob = found.resolve()
            for copy in (found, blob):
                copy.unlink(missing_ok=True)
            raise ExpertError(
                f"{path} of {self.address.at(self.commit)} {problem}.",
                "it was removed from the cache: run it again, and if it stays so, "
                "do not use this repository",
            )
        return found

    def _ask(self) -> tuple[str, dict[str, HubFile]]:
        """The commit and all files, in one call."""
        with self._explained(f"The repository {self.address.repo}"):
            info = self.api().model_info(
                self.address.repo,
                revision=self.address.revision,
                files_metadata=True,
                timeout=_TIMEOUT,
            )
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise ExpertError(
                f"The Hub gave no commit for {self.address.repo}.", "check HF_ENDPOINT"
            )
        files = {
            s.rfilename: HubFile(
                size=s.size,
                sha256=None if s.lfs is None else s.lfs.sha256,
                blob=None if s.lfs is not None else s.blob_id,
            )
            for s in info.siblings or []
        }
        return info.sha, files

    def _noted(self) -> dict[str, HubFile] | None:
        """The listing of a pinned commit from an earlier time."""
        note = self._notes / f"{self.address.revision}.json"
        if not self.address.pinned or not note.is_file():
            return None
        try:
            files = json.loads(note.read_text(encoding="utf-8"))
            return {path: HubFile(**file) for path, file in files.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return None  # unreadable notes are asked for again

    def _note(self) -> None:
        """A cache that cannot be written costs a call next time, nothing else."""
        fresh = self._notes / f".{uuid.uuid4().hex}"
        with suppress(OSError):
            self._notes.mkdir(parents=True, exist_ok=True)
            content = {path: asdict(file) for path, file in self.files.items()}
            fresh.write_text(json.dumps(content), encoding="utf-8")
            fresh.replace(self._notes / f"{self.commit}.json")

    def _explained(self, what: str) -> AbstractContextManager[None]:
        return hub_errors(what, self.address, sorted(p.stem for p in self._notes.glob("*.json")))


def client(endpoint: str | None, token: str | None) -> HfApi:
    """The Hub's client for an endpoint; by default `HF_ENDPOINT`, as it is now."""
    from huggingface_hub import HfApi

    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    return HfApi(endpoint=endpoint, token=token, library_name="pemt")


@contextmanager
def hub_errors(what: str, address: HubAddress, commits: Sequence[str] = ()) -> Iterator[None]:
    """Say what the Hub, the network or the disk refused, and what to do about it.

    Args:
        what: that was asked for.
        address: of the library.
        commits: that are in the cache, for the remedy.

    Raises:
        ExpertError: instead of huggingface_hub's errors.
    """
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ExpertError(
            f"{what}: access is given on request.", f"ask for it on the Hub's page, then {log_in}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ExpertError(
            f"{what}: there is no repository {address.repo!r} that you may read.",
            f"check the name; if it is private, {log_in}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ExpertError(
            f"{what}: {address.repo} has no revision {address.revision!r}.",
            f"see its branches, tags and commits at https://huggingface.co/{address.repo}",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ExpertError(f"{what}: the Hub has no such file.", "check the address") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        fix = log_in if code in (401, 403) else "try again later"
        if code in (409, 412):
            fix = "somebody else wrote to it meanwhile: run it again"
        raise ExpertError(f"{what}: the Hub answered {code}: {_line(error)}", fix) from error
    except OSError as error:
        if error.errno in NO_SPACE:
            raise ExpertError(
                f"{what}: the disk is full ({error.filename or 'in the cache'}).",
                "free some space, or set HF_HUB_CACHE to a folder with more",
            ) from error
        raise _unreachable(what, address, error, commits) from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of the HTTP client
        raise _unreachable(what, address, error, commits) from error


def _unreachable(
    what: str, address: HubAddress, error: Exception, commits: Sequence[str]
) -> ExpertError:
    cause = error.__cause__ or error
    fix = "check the connection (`pemt doctor`) and HF_ENDPOINT, or copy the library to a folder"
    if commits:
        fix += f"; in the cache and usable offline: {address.at(commits[-1])}"
        fix += "" if len(commits) == 1 else f" and {len(commits) - 1} more commits"
    return ExpertError(f"{what} cannot be fetched: {_line(cause)}", fix)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__


def _differs(path: Path, listed: HubFile) -> str:
    """What is wrong with a downloaded file; empty when it is the listed one."""
    size = path.stat().st_size
    if listed.size is not None and size != listed.size:
        return f"has {size} bytes, and {listed.size} are listed"
    if listed.sha256 is not None and _digest(path, hashlib.sha256()) != listed.sha256:
        return "has another sha256 than the Hub lists"
    if listed.blob is not None:
        git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        if _digest(path, git) != listed.blob:
            return "has another git hash than the Hub lists"
    return ""


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
