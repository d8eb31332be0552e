"""A subject with a planted fault, to see whether the campaign notices it."""

from __future__ import annotations

import os
import random
import time


class Planted:
    """A reader with a fault that one input in a hundred meets."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def prepare(self, rng: random.Random) -> int:
        self.meets = rng.random() < 0.01
        return 100

    def drive(self) -> None:
        if not self.meets:
            return
        if self.fault == "bug":
            raise KeyError("the planted one")
        if self.fault == "death":
            os._exit(9)
        if self.fault == "slow":
            start = time.process_time()
            while time.process_time() < start + 0.4:
                pass
        if self.fault == "wait":
            time.sleep(60)
        if self.fault == "memory":
            held = bytearray(80 << 20)
            held[::4096] = b"x" * len(held[::4096])
