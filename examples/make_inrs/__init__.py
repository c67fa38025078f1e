"""Image data sets as data sets of networks: `python -m examples.make_inrs data=mnist` (see README.md).

sirens.py    fits many SIRENs at once
folder.py    a set on disk: `load_inrs`
crew.py      the processes that fit and write shards
pictures.py  images beside their INRs
"""

from examples.make_inrs.folder import Inrs, InrSet, load_inrs
from examples.make_inrs.sirens import Fit, fit_sirens, psnr, render

__all__ = ["Fit", "InrSet", "Inrs", "fit_sirens", "load_inrs", "psnr", "render"]
