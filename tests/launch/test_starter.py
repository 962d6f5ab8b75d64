"""Who starts workers of this machine: a thread that lives as long as the run, whoever asks it to."""

import threading

import pytest

from launch.local import Starter
from tests.patience import PATIENT_S


def test_all_is_done_on_one_thread_that_outlives_who_asks():
    starter, seen = Starter(), []
    for _ in range(2):
        asking = threading.Thread(target=lambda: seen.append(starter.call(threading.current_thread)))
        asking.start()
        asking.join(PATIENT_S)
    assert seen == [starter, starter] and starter.is_alive()
    with pytest.raises(OSError, match="no more"):
        starter.call(lambda: (_ for _ in ()).throw(OSError("no more")))
    starter.close()
    assert not starter.is_alive()
