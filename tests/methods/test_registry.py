"""A method is one file: it registers itself, wherever the file lies."""

import subprocess
import sys

import pytest

from ldm_morph_jax.methods import METHODS, method_class, method_names
from ldm_morph_jax.methods.base import Method

PUBLISHED = "cyclemorph diffusemorph ldm_morph transmatch transmorph voxelmorph".split()


def test_every_method_of_the_paper_is_found():
    assert set(PUBLISHED) <= set(method_names(trained=True))
    assert {"initial", "lddmm", "syn"} <= set(method_names(trained=False))
    assert method_class("ldm_morph").title == "LDM-Morph"
    assert all(METHODS[name].title for name in method_names())


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'demons', expected one of cyclemorph.*voxelmorph$"):
        method_class("demons")
    with pytest.raises(ValueError, match=r"'lddmm', expected one of cyclemorph"):
        method_class("lddmm", trained=True)


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two methods are called 'lddmm'"):

        class Other(Method):
            name = "lddmm"

    assert METHODS["lddmm"].__name__ == "LDDMM"


@pytest.mark.integration
def test_a_method_in_a_file_of_its_own_is_found(tmp_path, monkeypatch):
    file = tmp_path / "swirl.py"
    file.write_text(
        "from ldm_morph_jax.methods.base import Method\n"
        "class Swirl(Method):\n    name, title, trained = 'swirl', 'Swirl', False\n"
    )
    monkeypatch.setenv("LDM_MORPH_PLUGINS", str(file))
    code = "from ldm_morph_jax.methods import method_class; print(method_class('swirl').title)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "Swirl\n", done.stderr
    monkeypatch.setenv("LDM_MORPH_PLUGINS", str(tmp_path / "absent.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LDM_MORPH_PLUGINS names" in done.stderr and "absent.py" in done.stderr
