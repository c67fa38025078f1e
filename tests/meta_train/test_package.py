"""What importing the package costs."""

import subprocess
import sys


def test_the_package_alone_loads_neither_lightning_nor_hydra():
    code = "import sys, meta_train; print(sorted({'lightning', 'hydra', 'torch._inductor'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
