"""What an error of torch.distributed means, in a few words."""

from __future__ import annotations


def why(error: Exception, timeout_s: float) -> str:
    """Why a transfer failed, in one line.

    Args:
        error: that the transfer raised.
        timeout_s: how long it waited at most.
    """
    text = str(error).lower()
    if "timed out" in text or "timeout" in text:
        return f"no sign of life for {timeout_s:g} s"
    if any(word in text for word in ("closed by peer", "reset by peer", "broken pipe")):
        return "the connection is closed: the process died or gave up"
    return one_line(error)


def one_line(error: Exception) -> str:
    """An error of the library in one line, without the place in its sources."""
    text = " ".join(str(error).split()).split("] ", 1)[-1]
    return f"{type(error).__name__}: {text[:200]}"
