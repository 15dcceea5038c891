"""Where a library on the Hub is: `hf://user/repo`, `hf://user/repo/sub/folder@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from pemt.errors import ConfigError

# pathlib makes one slash of two, so that is what a Path of an address looks like
_SCHEME = re.compile(r"hf:[/\\]{1,2}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PLACE = re.compile(rf"(?P<repo>{_PART}/{_PART})(?P<folder>(/{_PART})*)/?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_address(root: str | PurePath) -> bool:
    """Whether this names a library on the Hub rather than a folder."""
    return _SCHEME.match(str(root)) is not None


def repo_problem(repo: str) -> str:
    """Why the Hub takes no repository of this name; empty where it does."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return str(error)
    return ""


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A folder of a repository at a revision.

    Args:
        repo: "user/repo".
        folder: "sub/folder" in it; empty for the whole repository.
        revision: branch, tag or commit; None is the default branch.
    """

    repo: str
    folder: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | PurePath) -> HubAddress:
        """Read an address, with or without "hf://".

        Raises:
            ConfigError: it is none.
        """
        bare = _SCHEME.sub("", str(text).replace("\\", "/"), count=1)
        place, at, revision = bare.partition("@")
        match = _PLACE.fullmatch(place)
        dotted = ".." in bare
        wrong = "" if match is None else repo_problem(match["repo"])
        if match is None or wrong or dotted or (at and not _REVISION.fullmatch(revision)):
            raise ConfigError(
                f"{str(text)!r} is no library on the Hub. {wrong}".rstrip(),
                "write hf://user/repo, hf://user/repo/folder or hf://user/repo@revision",
            )
        return cls(repo=match["repo"], folder=match["folder"].strip("/"), revision=revision or None)

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def prefix(self) -> str:
        """What paths of this folder begin with, in the repository."""
        return f"{self.folder}/" if self.folder else ""

    def at(self, commit: str) -> str:
        """The address with its commit: what to write down."""
        return f"hf://{self.repo}{'/' + self.folder if self.folder else ''}@{commit}"
