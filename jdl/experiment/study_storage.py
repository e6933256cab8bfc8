"""Where Optuna keeps a study: a journal in the study's directory, or a database that machines share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_JOURNAL = "journal.log"


def import_optuna() -> Any:
    """Optuna, which speaks up for warnings alone; raises ImportError saying what to install."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("hyper-parameter search needs Optuna: pip install 'jdl[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def opened(url: str | None, folder: Path) -> Iterator[Any]:
    """Optuna's storage in a database, else a journal; raises ValueError for a URL that names none that answers."""
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
    """Optuna's journal in a directory that this process holds, without what a kill may have left of a line or lock."""
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
