"""What a failed read from the Hub says: one clear error for what three libraries raise."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pemt.errors import DataError
from pemt.tasks.sources import HubRows

CONVERTED = "refs/convert/parquet"
"""The branch of a repository that holds the Hub's own Parquet conversion of it."""


def explained(error: BaseException, hub: HubRows, split: str | None) -> DataError:
    """One clear error for what the libraries below raise in a dozen ways."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    full = str(error).strip()
    text = full.partition("\n")[0]
    listed = re.search(r"(?:Available|splits|configs|one of):? (\[.*?\])", full)
    names = re.findall(r"'([^']*)'", listed.group(1)) if listed else []
    if isinstance(error, GatedRepoError) or "gated dataset" in text:
        return DataError(
            f"{hub.path} is a gated data set, and this machine may not read it",
            f"accept its terms at https://huggingface.co/datasets/{hub.path}, then run "
            "`hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError) or text.startswith("Revision "):
        wanted = hub.revision or CONVERTED
        return DataError(
            f"{hub.path} has no revision {wanted!r} on the Hub",
            "give a branch or commit of the repository (rows.hub.revision)",
        )
    if isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError)):
        return DataError(
            f"There is no data set {hub.path!r} on the Hub, or it is private",
            "check rows.hub.path; for a private one run `hf auth login`",
        )
    if "BuilderConfig" in text or "Config name is missing" in text:
        return choose("configuration", hub.name, names, hub)
    if text.startswith(("Unknown split", "Bad split")):
        return choose("split", split, names, hub)
    where = f"The split {split!r} of {title(hub)}" if split else title(hub)
    if no_network(error):
        return DataError(
            f"{where} could not be loaded: the Hub did not answer ({type(error).__name__}: {text})",
            "check the connection (`pemt doctor`), or give a local mirror: --data-dir or "
            "PEMT_DATA_DIR",
        )
    cause = error.__cause__
    because = f"; {type(cause).__name__}: {cause}" if cause is not None else ""
    return DataError(
        f"{where} could not be loaded: {type(error).__name__}: {text}{because}",
        "check the repository's files, or give a local mirror: --data-dir or PEMT_DATA_DIR",
    )


def no_network(error: BaseException | None) -> bool:
    """Whether the Hub did not answer, by the error or what caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        names = {kind.__name__ for kind in type(error).__mro__}
        # By name: which HTTP library raises it has changed from one version to the next.
        if names & {"TransportError", "ConnectionError", "TimeoutError"}:
            return True
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(status, int) and (status == 429 or status >= 500):
            return True
        error = error.__cause__
    return False


def choose(what: str, given: str | None, known: Iterable[str], hub: HubRows) -> DataError:
    """A configuration or split that is not there, with those that are."""
    listed = ", ".join(sorted(known)) or "unknown"
    said = f"has no {what} {given!r}" if given is not None else f"has more than one {what}"
    key = "rows.hub.name" if what == "configuration" else "rows.hub.splits"
    return DataError(f"{title(hub)} {said}", f"give one under {key}: {listed}")


def title(hub: HubRows) -> str:
    """Repository and configuration, for messages."""
    return f"{hub.path} {hub.name or ''}".strip()
