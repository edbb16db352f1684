"""Packaging of ldm_morph_jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="ldm_morph_jax",
    version="0.1.0",
    description="Latent-diffusion-guided deformable registration of 2D cardiac images, in JAX/Flax",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ldm_morph_jax", "ldm_morph_jax.*"]),
    package_data={"ldm_morph_jax": ["report/templates/*", "weights/*/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "chex>=0.1.92,<0.2",
        "contourpy>=1.3",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "nibabel>=5.3",
        "numpy>=2.1,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=11",
        "pydicom>=3,<4",
        "safetensors>=0.5",
        "scipy>=1.15",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9,<5",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "ants": ["antspyx>=0.6"],
        "echonet": ["av>=14"],
        "torch": ["torch>=2.4"],
        "test": [
            # for SyN, where it has a wheel; it holds NumPy below 2.4 and SciPy below 1.16
            "antspyx>=0.6.3; python_version < '3.14' and platform_machine == 'x86_64'",
            "av>=14",
            "nbclient>=0.10",
            "ipykernel>=6",
            "nbformat>=5.10",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9,<0.18",
            "SimpleITK>=2.4",
            # exactly this one: a looser range makes pip fetch the newest build with its GPU
            # packages
            "torch==2.13.0",
        ],
    },
)
