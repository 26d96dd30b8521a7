"""From Students' folders to the hub: a repository for each, and a collection for a family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from matta_cli.errors import MattaError, said
from matta_cli.files import atomic, reading
from matta_cli.files.card import read_card
from matta_cli.files.workspace import refuse_no_student
from matta_cli.models.inside import inside
from matta_cli.progress import Say
from matta_cli.students.card import on_hub

CARD = "README.md"
_SUMS = "SHA256SUMS"
_AGAIN = "export it again"
# what a status of the hub means, where one sentence helps
_REFUSED = {
    401: "does not accept your token: run `hf auth login`, or set HF_TOKEN",
    403: "does not let your token write there: --to must begin with a name of yours",
    404: "knows no such name: --to must begin with a name of yours",
    429: "has had too many requests: wait some minutes, and run the same command again",
}


@dataclass(frozen=True)
class Repository:
    """What a Student comes to on the hub.

    files: those that are sent, by their names there; the card is among them, whose text is
    ``card``. foreign: what lies in the folder, is not matta's, and is not sent.
    """

    name: str
    folder: Path
    files: dict[str, Path]
    card: str
    foreign: list[str]


def plan(folders: Sequence[Path], to: str, license: str = "") -> list[Repository]:
    """The repositories of Students: of one ``to`` itself, of several ``to`` and their own names.

    Raises ``MattaError`` for a name that the hub does not have, a folder that is no Student's or
    has changed since it was written, and where the license of a base is not known.
    """
    own = {folder: folder.resolve().name for folder in folders}
    if len({*own.values()}) < len(folders):
        raise MattaError("Two of these Students have the same name: push them one by one.")
    names = {folder: to if len(folders) == 1 else f"{to}-{name}" for folder, name in own.items()}
    for name in names.values():
        _check(name, to)
    return [_repository(folder, name, license) for folder, name in names.items()]


def _check(name: str, to: str) -> None:
    form = "USER/NAME, of letters, digits, '-', '_' and '.', 96 characters at most"
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise MattaError(f"--to {to!r} gives no name of the hub: it is {form}.") from None
    if "/" not in name:
        raise MattaError(f"--to {to!r} does not say whose it is: it is {form}.")


def _repository(folder: Path, name: str, license: str) -> Repository:
    refuse_no_student(folder)
    if not read_card(folder)["lineage"].get("student"):
        raise MattaError(f"{folder} is no Student: pass a folder that `matta export` made.")
    files = _written(folder)
    try:
        text = reading.text(inside(folder, folder / CARD))
        card = ModelCard(text)
    except OSError:
        raise MattaError(f"{folder} has no model card ({CARD}): {_AGAIN}.") from None
    except MattaError:
        raise
    except Exception as error:  # a card that somebody has changed, as YAML and its checks say it
        what = f"{folder / CARD} is no model card that the hub can read ({said(error)})"
        raise MattaError(f"{what}: {_AGAIN}.") from None
    if license:
        card.data["license"] = license
    elif not card.data.get("license"):
        base = card.data.get("base_model") or read_card(folder)["lineage"]["source"]
        what = f"The license of the base ({base}) is not known"
        raise MattaError(f"{what}: pass what its owner says, --license apache-2.0 for example.")
    known = {*files, CARD, _SUMS}
    there = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())
    foreign = [n for path in there if (n := path.relative_to(folder).as_posix()) not in known]
    sent = {**files, CARD: folder / CARD}
    return Repository(name, folder, dict(sorted(sent.items())), on_hub(str(card), name), foreign)


def _written(folder: Path) -> dict[str, Path]:
    """The files of a Student that are as matta wrote them; all are there, and none is a link."""
    try:
        sums = atomic.sealed(folder)
    except OSError:
        raise MattaError(
            f"{folder} has no {_SUMS}, by which its files are known: {_AGAIN}."
        ) from None
    except ValueError:
        raise MattaError(f"{folder / _SUMS} is damaged: {_AGAIN}.") from None
    files = {}
    for name, known in sums.items():
        path = folder / name
        parts = [folder.joinpath(*Path(name).parts[: n + 1]) for n in range(len(Path(name).parts))]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise MattaError(f"{folder / _SUMS} names {name!r}, outside of its folder: {_AGAIN}.")
        if any(part.is_symlink() for part in parts):
            raise MattaError(f"{path} is a link, which is not sent: {_AGAIN}.")
        if not path.is_file() or atomic.file_digest(path) != f"sha256:{known}":
            raise MattaError(f"{path} is not as matta wrote it: {_AGAIN}.")
        files[name] = path
    return files


@dataclass(frozen=True)
class Hub:
    """The hub, as whoever has the token may use it."""

    api: HfApi
    say: Say

    @classmethod
    def opened(cls, say: Say) -> Hub:
        """Raises ``MattaError`` where there is no token, or the hub does not know it."""
        token = get_token()
        if not token:
            raise MattaError(
                "There is no token to write to the hub with: run `hf auth login`, or set HF_TOKEN."
            )
        hub = cls(HfApi(token=token), say)
        with hub.asked("to say who you are"):
            hub.api.whoami()
        return hub

    def push(
        self, repositories: Sequence[Repository], to: str, *, private: bool, overwrite: bool
    ) -> list[str]:
        """Send them; return their addresses, that of the collection last where there is one.

        Raises ``MattaError`` where one of them is there already and ``overwrite`` is not set,
        before anything is sent, and for what the hub refuses.
        """
        for one in () if overwrite else repositories:
            with self.asked(f"for {one.name}"):
                there = self.api.repo_exists(one.name)
            if there:
                more = "pass --overwrite to add a commit that replaces its files"
                raise MattaError(f"{one.name} is on the hub already: {more}, or another --to.")
        places = []
        for one in repositories:
            self.say(f"Sending {one.folder} to {one.name}.")
            with self.asked(f"to take {one.name}"):
                self.api.create_repo(one.name, private=private or None, exist_ok=overwrite)
                self.api.create_commit(one.name, _added(one), commit_message="Pushed by matta")
            places.append(f"{self.api.endpoint}/{one.name}")
        if len(repositories) > 1:
            places.append(self._collect(repositories, to, private))
        return places

    def _collect(self, repositories: Sequence[Repository], to: str, private: bool) -> str:
        user, _, title = to.partition("/")
        with self.asked(f"to collect {to}"):
            made = self.api.create_collection(
                title,
                namespace=user,
                description="Students of one base, made by matta",
                private=private,
                exists_ok=True,
            )
            for one in repositories:
                own: dict[str, Any] = {"item_id": one.name, "item_type": "model", "exists_ok": True}
                self.api.add_collection_item(made.slug, **own)
        return f"{self.api.endpoint}/collections/{made.slug}"

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """Errors in here as a sentence. what: what the hub was asked, as ``to ...`` or ``for ...``.

        The hub's client raises its own errors, its HTTP library's and the system's.
        """
        hub = f"The hub ({self.api.endpoint}), asked {what},"
        try:
            yield
        except OfflineModeIsEnabled:
            raise MattaError("HF_HUB_OFFLINE is set: unset it to reach the hub.") from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            told = re.sub(r"\s+", " ", error.server_message or said(error)).rstrip(". ")
            meaning = _REFUSED.get(status, f"refuses ({status}: {told})")
            raise MattaError(f"{hub} {meaning}.") from error
        except ValueError as error:
            told = re.sub(r"\s+", " ", str(error)).rstrip(". ")
            raise MattaError(f"{hub} refuses: {told}.") from error
        except Exception as error:
            told = said(error).rstrip(".")
            if isinstance(error, OSError) or type(error).__module__.startswith("http"):
                again = "run the same command again when the network is back"
                raise MattaError(f"{hub} is not reached ({told}): {again}.") from error
            what = f"{type(error).__name__}: {told}"
            raise MattaError(f"{hub} answers what is not understood ({what}).") from error


def _added(one: Repository) -> list[CommitOperationAdd]:
    files: dict[str, Any] = {name: str(path) for name, path in one.files.items()}
    files[CARD] = one.card.encode("utf-8")
    return [CommitOperationAdd(name, content) for name, content in files.items()]
