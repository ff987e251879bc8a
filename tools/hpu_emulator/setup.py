"""Builds the emulated device against the torch that is installed."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import find_packages, setup

# The package that is being built announces itself to torch, which would try to load it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = Path(__file__).resolve().parent
# The version of the software whose behaviour is emulated: version probes see it.
VERSION = "1.22.0.494"


def main() -> None:
    setup(
        name="habana-torch-plugin",
        version=VERSION,
        description="An emulated HPU for PyTorch: the device, its API, its recipes and its limits",
        python_requires=">=3.10",
        packages=find_packages(include=["habana_frameworks*", "hpu_emulator*"]),
        package_data={"": ["py.typed", "*.md"]},
        install_requires=["torch>=2.6"],
        entry_points={
            "torch.backends": ["hpu = habana_frameworks.autoload:autoload"],
            "torch_dynamo_backends": [
                "hpu_backend = habana_frameworks.torch.dynamo.compile_backend.backends:hpu_backend"
            ],
        },
        ext_modules=[
            CppExtension(
                "hpu_emulator._C",
                sorted(str(path.relative_to(HERE)) for path in HERE.glob("csrc/*.cpp")),
                depends=sorted(str(path.relative_to(HERE)) for path in HERE.glob("csrc/*.h")),
                extra_compile_args=["-O1", "-std=c++17", "-fvisibility=hidden", "-g0"],
            )
        ],
        cmdclass={"build_ext": BuildExtension},
    )


if __name__ == "__main__":
    main()
