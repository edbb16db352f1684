"""What is installed from the wheel works by itself: commands, weights, experiments, examples."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
NON_COMMERCIAL = {"acdc-small", "camus-4ch-small", "anatomy-mri", "anatomy-echo"}


def run(*arguments, **options):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the sdist of this checkout."""
    out = tmp_path_factory.mktemp("built")
    run("-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs a program with the installed wheel, in an empty folder, the checkout out of reach."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    (wheel,) = built.glob("*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = run("-c", "import ldm_morph_jax as p; print(p.__file__)", cwd=folder, env=environment)
    assert where.startswith(str(site))
    return lambda *arguments: run(*arguments, cwd=folder, env=environment), folder, site


def test_sdist_can_build_and_test_itself(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"setup.py", "README.md", "LICENSE", "configs/quickstart.py"} <= names
    assert "ldm_morph_jax/weights/sunnybrook-small/model.safetensors" in names


def test_wheel_is_small_and_names_both_licences(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < 10e6  # 5 MB of it are the three anatomy networks
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (n for n in names if n.endswith("dist-info/METADATA"))
        lines = file.read(metadata).decode().splitlines()
    assert "License-Expression: Apache-2.0 AND CC-BY-NC-SA-4.0" in lines
    licences = ["LICENSE", *(f"ldm_morph_jax/weights/{n}/LICENSE.md" for n in NON_COMMERCIAL)]
    assert sorted(licences) == sorted(
        line.removeprefix("License-File: ") for line in lines if line.startswith("License-File")
    )
    assert "ldm_morph_jax/py.typed" in names
    shipped = {n.split("/")[2] for n in names if n.startswith("ldm_morph_jax/weights/")}
    assert shipped == {"sunnybrook-symmetric", "anatomy", *NON_COMMERCIAL}


def test_console_command_is_declared(installed):
    _, _, site = installed
    (entry_points,) = site.glob("ldm_morph_jax-*.dist-info/entry_points.txt")
    assert "ldm-morph = ldm_morph_jax.cli:main" in entry_points.read_text()


def test_example_is_registered(installed):
    command, folder, _ = installed
    command("-m", "ldm_morph_jax.cli", "register", "--example", "--out", "out")
    assert {"warped.nii.gz", "displacement.nii.gz", "metrics.json", "report.html"} <= {
        path.name for path in (folder / "out").iterdir()
    }


def test_an_experiment_is_found_by_name_and_trains(installed):
    command, folder, _ = installed
    command(
        *("-m", "ldm_morph_jax.cli", "train", "--config", "method:voxelmorph", "--workdir", "run"),
        *("--config.data.image_size=32", "--config.registration.train.steps=2"),
        "--config.data.options={'look': 'sax', 'n_train': 4, 'n_validation': 1, 'n_test': 1}",
    )
    assert (folder / "run/registration/complete.json").is_file()
