"""Records of the logger ``jhsae`` as lines of the command line."""

import logging
import sys

import pytest

from jhsae.commands.console import console


def say():
    logging.getLogger("jhsae.training.run").info("runs/a is finished; nothing to do")
    logging.getLogger("jhsae.training.run").warning("no feature can be dead")
    logging.getLogger("jhsae.parallel.progress").info("step 3/5")
    logging.getLogger("jhsae.files").debug("unseen")
    logging.getLogger("elsewhere").info("unseen")


def test_messages_go_to_stdout_and_warnings_and_progress_to_stderr(capsys):
    with console():
        say()
    out, err = capsys.readouterr()
    assert out == "runs/a is finished; nothing to do\n"
    assert err == "no feature can be dead\nstep 3/5\n"


def test_nothing_is_printed_or_changed_outside_of_it(capsys):
    logger = logging.getLogger("jhsae")
    before = logger.level, logger.propagate, list(logger.handlers)
    with pytest.raises(KeyError), console():
        raise KeyError
    assert (logger.level, logger.propagate, logger.handlers) == before
    logging.getLogger("jhsae.training.run").info("a record, for whoever configures logging")
    assert capsys.readouterr() == ("", "")


def test_a_pipe_that_is_closed_ends_the_command_as_with_print(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError), console():
        say()
