"""Optuna's storage of a study, a journal in its directory or a shared database, and the notes on each trial there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_JOURNAL = "journal.log"


def import_optuna() -> Any:
    """Import Optuna, and let it print warnings only.

    Raises:
        ImportError: if it is not installed; the message says what to install.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("hyper-parameter search needs Optuna: pip install 'jdl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def opened(url: str | None, folder: Path) -> Iterator[Any]:
    """Open Optuna's storage of a study.

    Args:
        url: URL of a database; None for a journal in the study directory.
        folder: the study directory, which this process holds.

    Raises:
        ValueError: if no database answers at the URL.
    """
    if url is None:
        yield _journal(folder)
        return
    import_optuna()
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        database = RDBStorage(url)
    except SQLAlchemyError as error:
        raise ValueError(f"--storage: {str(error).splitlines()[0]}; give a URL like sqlite:///study.db") from error
    try:
        yield database
    finally:
        database.engine.dispose()


def _journal(folder: Path) -> Any:
    """Open the journal, without the lock and the half-written last line that a kill may have left."""
    import_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    file = folder / _JOURNAL
    file.with_name(_JOURNAL + ".lock").unlink(missing_ok=True)
    if file.is_file():
        whole = file.read_bytes().rpartition(b"\n")[:2]
        with file.open("r+b") as journal:
            journal.truncate(sum(map(len, whole)))
    return JournalStorage(JournalFileBackend(str(file)))


class TrialNotes(NamedTuple):
    """The search's notes on a trial, in Optuna's `user_attrs`; a killed search finds the trial's runs with them.

    Attributes:
        owner: the process that trains the trial, "HOST:STUDY DIRECTORY"; empty until the other notes are written.
        run: the trial's run directory within the study directory.
        shared_run: the run directory of the program that trains this trial and others; empty if the trial is trained
            by itself.
        place: the trial's place among those of its program.
        failure: why the trial failed; empty if it did not.
    """

    owner: str = ""
    run: str = ""
    shared_run: str = ""
    place: int = 0
    failure: str = ""


# The key of each note in `user_attrs`. Studies on disk have these.
_KEYS = {"owner": "owner", "run": "run", "shared_run": "together", "place": "place", "failure": "note"}


def read_notes(trial: Any) -> TrialNotes:
    """Read the notes on an Optuna trial; those that were never written have their defaults."""
    attributes = trial.user_attrs
    return TrialNotes(**{field: attributes[key] for field, key in _KEYS.items() if key in attributes})


def write_notes(trial: Any, notes: TrialNotes) -> None:
    """Write the notes on a new trial. The owner comes last, so a trial without one has incomplete notes."""
    trial.set_user_attr(_KEYS["place"], notes.place)
    trial.set_user_attr(_KEYS["run"], notes.run)
    if notes.shared_run:
        trial.set_user_attr(_KEYS["shared_run"], notes.shared_run)
    trial.set_user_attr(_KEYS["owner"], notes.owner)


def write_failure(trial: Any, failure: str) -> None:
    """Note why a trial failed."""
    trial.set_user_attr(_KEYS["failure"], failure)
