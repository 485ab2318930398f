"""How often the interpreter looks for garbage in a process that serves.

Nearly all that a server throws away is freed at once, because nothing refers to it any more. What is left are cycles: of a call
that waited, some 17 objects. To find them the interpreter looks through all objects there are, and no call is answered
meanwhile. By default it did so ten times while 8,000 actions came, waited and went, which took 0.3 s and more each time.
"""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (10_000, 5, 40)
"""Objects more than before, until the youngest are looked through (1 ms), those a little older, and all. Together two million:
what cycles hold until then is 300 MB at most. By default it is 700, 10 and 10, which 3,000 waiting actions exceed."""


def look_for_garbage_rarely() -> None:
    """To be called once the process has started: what it consists of by then is never looked at again."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
