"""`pemt experts`: share a library through the Hugging Face Hub."""

from __future__ import annotations

from pemt.cli.experts import open_library, print_json


def push(
    library: str,
    repo: str,
    *,
    names: list[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    licence: str | None = None,
    json: bool = False,
) -> int:
    """Upload experts to the Hub, with their cards, in one commit.

    Each is verified first. Log in with `hf auth login`, or set HF_TOKEN.

    Example: pemt experts push experts user/my-experts

    Args:
        library: Folder that holds the experts, one folder each.
        repo: The repository, user/repo or user/repo/folder; made if it does not exist.
        names: Which experts, with commas between; all by default.
        private: Whether a repository made here is private; by default what the account is set to.
        revision: The branch; main by default.
        message: Of the commit.
        licence: Of the weights, for the cards, as the Hub names it, such as apache-2.0.
        json: Print the address with its commit as JSON.

    Returns:
        0.
    """
    from pemt.experts import push as upload

    address = upload(
        open_library(library), repo, names=names, private=private, revision=revision,
        commit_message=message, licence=licence,
    )  # fmt: skip
    if json:
        print_json({"address": address})
        return 0
    print(f"Pushed: {address}")
    return 0


def pull(
    address: str,
    library: str,
    *,
    names: list[str] | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Copy experts from the Hub into a local library, verified; all of them or none.

    Example: pemt experts pull hf://user/my-experts@main experts --names '["film_reviews"]'

    Args:
        address: hf://user/repo, hf://user/repo/folder or hf://user/repo@revision.
        library: Folder of the library; made where it does not exist.
        names: Which experts, with commas between; all by default.
        overwrite: Replace experts of the same name.
        json: Print the address with its commit and the experts as JSON.

    Returns:
        0.
    """
    from pemt.experts import pull as download

    source, infos = download(address, library, names=names, overwrite=overwrite)
    if json:
        hashes = {info.name: info.content_hash for info in infos}
        print_json({"address": source, "experts": hashes})
        return 0
    print(f"{len(infos)} in {library} from {source}: {', '.join(i.name for i in infos)}")
    return 0
