"""The device of host memory, for tests of what a GPU would do."""

from tests.double.installed import twin

__all__ = ["twin"]
