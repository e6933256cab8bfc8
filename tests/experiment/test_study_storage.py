"""The notes on a trial, which studies of earlier versions have under the same keys."""

import pytest

from jdl.experiment.study_storage import TrialNotes, import_optuna, read_notes, write_failure, write_notes

pytest.importorskip("optuna", reason="hyper-parameter search needs jdl[tune]")


@pytest.fixture
def trial():
    return import_optuna().create_study().ask()


def test_notes_are_stored_under_the_keys_of_earlier_studies(trial):
    notes = TrialNotes(owner="here:/runs/tune/moons", run="trial-0003", shared_run="together-0002", place=1)
    write_notes(trial, notes)
    write_failure(trial, "RuntimeError: out of order")
    assert trial.user_attrs == {
        "owner": "here:/runs/tune/moons", "run": "trial-0003", "together": "together-0002", "place": 1,
        "note": "RuntimeError: out of order",
    }  # fmt: skip
    assert read_notes(trial) == notes._replace(failure="RuntimeError: out of order")


def test_a_trial_by_itself_has_no_shared_run(trial):
    write_notes(trial, TrialNotes(owner="here:/runs/tune/moons", run="trial-0000"))
    assert trial.user_attrs == {"owner": "here:/runs/tune/moons", "run": "trial-0000", "place": 0}
    assert read_notes(trial).shared_run == ""


def test_the_owner_is_written_last(trial, monkeypatch):
    written = []
    monkeypatch.setattr(trial, "set_user_attr", lambda key, value: written.append(key))
    write_notes(trial, TrialNotes("here:/study", "trial-0000", "together-0000", 0))
    assert written.index("owner") == len(written) - 1 == 3  # a kill before that leaves notes that are written again
    assert read_notes(trial) == TrialNotes()
