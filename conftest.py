"""Set-up of all tests: data sets are cached in a folder of their own, and only what ships is needed."""

import importlib.util
import os

import pytest

# Kernels for a GPU are written in Triton, which comes with PyTorch's builds for one.
collect_ignore = [] if importlib.util.find_spec("triton") else ["lopt/rules/neuron/kernels/triton_kernels.py"]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither read nor fill the user's cache."""
    before = os.environ.get("LOPT_CACHE")
    os.environ["LOPT_CACHE"] = str(tmp_path_factory.mktemp("lopt-cache"))
    yield
    os.environ.pop("LOPT_CACHE")
    if before is not None:
        os.environ["LOPT_CACHE"] = before
