"""Messages of loader processes that cannot work."""

import multiprocessing
from types import SimpleNamespace

import pytest

from uhkd.data import worker_errors
from uhkd.data.worker_errors import check_main_guard, start_error, worker_error

KILLED = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
BUS = RuntimeError(
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ... shared memory ..."
)


def test_a_script_that_is_run_again_ends_its_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    check_main_guard()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit) as stop:
        check_main_guard()
    assert '`if __name__ == "__main__":`' in capsys.readouterr().err
    monkeypatch.setattr(worker_errors.multiprocessing, "get_start_method", lambda: "spawn")
    worker = SimpleNamespace(exitcode=stop.value.code, join=lambda seconds: None)
    assert "__main__" in str(worker_error(KILLED, [worker]))
    assert "__main__" in str(start_error(EOFError()))


def test_other_ends_of_a_loader_process():
    assert "was ended from outside" in str(worker_error(KILLED, ()))
    assert "--shm-size" in str(worker_error(BUS, ()))
    assert worker_error(RuntimeError("Caught RuntimeError in DataLoader worker process 0."), ()) is None


def test_what_cannot_be_pickled_is_named():
    assert "Can't pickle local object 'f'" in str(start_error(AttributeError("Can't pickle local object 'f'")))
    assert start_error(AttributeError("no such thing")) is None
