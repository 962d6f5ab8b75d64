"""A torch device made of host memory, `twin`, with several cards: `twin:0`, `twin:1`.

Every operation on it is done at once, with real values; what a GPU would do later is told by clocks. It notes what goes
wrong on a GPU and not on a processor:

* placement: an operation that mixes host tensors or two cards raises, as on a GPU (`tensors`);
* host waits: every call that holds a host thread until work is done, with the lines of ours that made it (`ledger`);
* order: an access to memory that no edge (queue, event, host) puts behind the one before it, memory given back while
  another queue uses it, pinned memory that the host touches while a copy is under way (`ledger`);
* events that complete late, and times that are the device's own (`module`).

The production class `devices.Accelerator` runs on it unchanged, but for pinned memory. A test asks for the fixture
`twin` (`installed`), which fails it in the end where anything was out of order. Sums are rounded otherwise than on the
processor, where torch takes operations apart in another way, so runs are compared with runs on this device.
"""

from tests.double.ledger import LEDGER, Ledger, Wait
from tests.double.module import KIND

__all__ = ["KIND", "LEDGER", "Ledger", "Wait"]
