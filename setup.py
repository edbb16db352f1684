"""Packaging of ldm_morph_jax; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# the experiments of `configs/` are installed inside the package, so that `--config NAME` finds them
CONFIGS = ("configs", "configs/baselines", "configs/benchmark")
EXPERIMENTS = {f"ldm_morph_jax.{folder.replace('/', '.')}": folder for folder in CONFIGS}
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ldm_morph_jax/__init__.py").read_text())[1]

setup(
    name="ldm_morph_jax",
    version=VERSION,
    description="Deformable registration and tissue tracking of cardiac images, in JAX/Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    # four folders of weights have the licence of the data that they were trained on
    license_expression="Apache-2.0 AND CC-BY-NC-SA-4.0",
    license_files=["LICENSE", "ldm_morph_jax/weights/*/LICENSE.md"],
    keywords="image registration, cardiac MRI, echocardiography, diffusion models, JAX",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    project_urls={
        "Method": "https://arxiv.org/abs/2411.15426",
        "Published code": "https://github.com/wujiong-hub/LDM-Morph",
    },
    packages=[*find_packages(include=["ldm_morph_jax", "ldm_morph_jax.*"]), *EXPERIMENTS],
    package_dir=EXPERIMENTS,
    package_data={
        "ldm_morph_jax": ["py.typed", "report/templates/*", "weights/*/*", "examples/*"],
    },
    # 12 of the 22 MB, and not the default: fetched when first used (runs/weights.py)
    exclude_package_data={"ldm_morph_jax": ["weights/sunnybrook-small/*"]},
    python_requires=">=3.11",
    entry_points={"console_scripts": ["ldm-morph = ldm_morph_jax.cli:main"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "chex>=0.1.92,<0.2",
        "contourpy>=1.3",
        "cyclopts>=5.5,<6",
        "filelock>=3.13",
        "flatbuffers>=24.3",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2.1,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pandas>=3,<4",
        "pillow>=11",
        "pooch>=1.8",
        "pydicom>=3,<4",
        "safetensors>=0.5",
        "scipy>=1.15",
        "SimpleITK>=2.4,<3",
        "tabulate>=0.9",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9,<5",
        "tifffile>=2025.1.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "ants": ["antspyx>=0.6"],
        # compressed TIFF that ITK does not decode; compressed enhanced DICOM that ITK does not open
        "codecs": [
            "imagecodecs>=2025.3.30",
            "pylibjpeg>=2",
            "pylibjpeg-libjpeg>=2",
            "pylibjpeg-openjpeg>=2",
        ],
        "dicom": ["highdicom>=0.28,<0.29"],
        "video": ["av>=14"],
        "torch": ["torch>=2.4"],
        "docs": ["mkdocs>=1.6,<2", "mkdocstrings[python]>=0.26"],
        "test": [
            # for SyN, where it has a wheel; it holds NumPy below 2.4 and SciPy below 1.16
            "antspyx>=0.6.3; python_version < '3.14' and platform_machine == 'x86_64'",
            "av>=14",
            "axe-core-python>=0.1",  # its JavaScript checks pages
            "build>=1.2",
            "highdicom>=0.28,<0.29",
            "import-linter>=2.17",
            "ipykernel>=6",
            "mypy>=1.13",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "nibabel>=5.3",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9,<0.18",
            "setuptools>=77",  # builds the wheel that a test installs
            # exactly this one: a looser range makes pip fetch the newest build with its GPU
            # packages
            "torch==2.13.0",
        ],
    },
)
