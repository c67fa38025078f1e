"""Random numbers by name instead of by order: a generator is a pure function of a seed and what it is for.

So a run that is interrupted anywhere and resumed draws what the uninterrupted one draws, a run on several processes
draws what one process draws, and there is no random state to save.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """An independent generator for each (seed, purpose, indices); the numbers also depend on the kind of device.

    >>> a, b = generator(0, "noise", 3), generator(0, "noise", 3)
    >>> bool((torch.randn(4, generator=a) == torch.randn(4, generator=b)).all())
    True
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])
    return torch.Generator(device).manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
