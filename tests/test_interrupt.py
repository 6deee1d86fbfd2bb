import signal
import threading

import pytest

from parm_mlx.interrupt import stop_on_interrupt


def test_the_first_signal_is_a_request_and_the_second_ctrl_c_an_order() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as stopped:
        assert (stopped(), stopped.signal) == (False, None)
        signal.raise_signal(signal.SIGINT)
        assert (stopped(), stopped.signal) == (True, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_signals_may_come_again() -> None:
    with stop_on_interrupt(signal.SIGINT, signal.SIGTERM) as stopped:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stopped.signal == signal.SIGTERM


def test_outside_the_main_thread_there_are_no_signals() -> None:
    answers = []

    def work() -> None:
        with stop_on_interrupt() as stopped:
            answers.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
