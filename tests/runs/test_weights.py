"""Shipped weights: compact, complete, and refused when tampered with."""

import http.server
import json
import shutil
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from ldm_morph_jax.config import paper_config
from ldm_morph_jax.runs import anatomy, weights
from ldm_morph_jax.runs.trained import load_method
from ldm_morph_jax.runs.weights import (
    WeightsError,
    load_compact,
    save_compact,
    save_weights,
    sha256,
)

CONFIG = {"config": {"seed": 0}, "spacing_mm": 1.25}
CARD = {"name": "tiny", "data": "none"}


def params():
    rng = np.random.default_rng(0)
    return {
        "params": {"conv": {"kernel": rng.normal(size=(3, 3, 1, 4)).astype(np.float32)}},
        "frozen": {"codebook": np.arange(4, dtype=np.int32), "scale": np.float32(0.1234567)},
    }


def test_round_trip(tmp_path):
    path = tmp_path / "model.safetensors"
    digest = save_compact(params(), path, CONFIG, CARD)
    assert digest == sha256(path)
    for expected in (None, digest):
        found, config, card = load_compact(path, expected)
        assert (config, card) == (CONFIG, CARD)
        kernel = found["params"]["conv"]["kernel"]
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, params()["params"]["conv"]["kernel"], rtol=1e-3)
        assert found["frozen"]["scale"] == params()["frozen"]["scale"]  # scalars stay exact
        assert found["frozen"]["codebook"].dtype == np.int32
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.safetensors",
        "model.safetensors.sha256",
    ]


def test_others_may_read_it_as_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    save_compact({"a": np.ones(3, np.float32)}, tmp_path / "w.safetensors", {}, {})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == {(tmp_path / "any").stat().st_mode}


def test_a_method_and_nothing_of_the_machine_it_was_trained_on(tmp_path):
    config = paper_config()
    config.data.source = str(tmp_path / "private" / "images")
    config.data.directory = str(tmp_path / "private" / "data")
    config.ldm_from = str(tmp_path / "private" / "run")
    method = SimpleNamespace(**params(), config=config, spacing_mm=1.25, slice_mm=None)
    path = tmp_path / "model.safetensors"
    assert save_weights(method, path, CARD) == sha256(path)
    assert b"private" not in path.read_bytes()
    found, stored, card = load_compact(path)
    assert card == CARD and stored["spacing_mm"] == 1.25
    assert stored["config"]["registration"] == json.loads(config.registration.to_json())
    assert found["frozen"]["codebook"].tolist() == [0, 1, 2, 3]
    assert config.data.source and config.ldm_from  # the method's own configuration is left alone


def test_tampered_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    digest = save_compact(params(), path, CONFIG, CARD)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    path.write_bytes(data)
    for expected in (None, digest):
        with pytest.raises(WeightsError, match="damaged or tampered with"):
            load_compact(path, expected)


def test_other_refusals(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(WeightsError, match="no such weights file"):
        load_compact(path)
    save_compact(params(), path, CONFIG, CARD)
    (tmp_path / "model.safetensors.sha256").unlink()
    with pytest.raises(WeightsError, match="has no checksum"):
        load_compact(path)
    path.write_bytes(b"hello, not a weights file")
    with pytest.raises(WeightsError, match="not a weights file"):
        load_compact(path, sha256(path))
    for bad in (1e6, np.nan):
        with pytest.raises(WeightsError, match="float16 cannot"):
            save_compact({"a": np.array([bad])}, path, CONFIG, CARD)
    with pytest.raises(WeightsError, match="unknown model 'nothing'"):
        weights.named_weights("nothing")


@pytest.mark.parametrize("name", sorted(weights.SHA256) or [None])
def test_shipped_weights_are_what_the_table_says(name):
    if name is None:
        pytest.skip("no weights ship yet")
    path, digest = weights.named_weights(name)
    assert path.stat().st_size < 25e6
    _, _, card = load_compact(path, digest)
    assert {"name", "data", "command", "metrics", "intended_use", "limits"} <= set(card)


@pytest.mark.parametrize("name", sorted(anatomy.SHA256))
def test_shipped_anatomy_networks_are_what_the_table_says(name):
    model = anatomy.load_anatomy(name)  # checks the sha256
    needed = {"name", "data", "command", "metrics", "intended_use", "limits", "license", "citation"}
    assert needed <= set(model.card)
    assert (weights.FOLDER / name / weights.FILE_NAME).stat().st_size < 2e6
    assert (weights.FOLDER / name / "LICENSE.md").is_file() == ("CC BY-NC" in model.card["license"])
    assert 0.5 < model.temperature < 3 and 0 < model.least_confidence < 1
    noise = np.random.default_rng(0).random((1, *[model.window.size] * 2))
    assert model.probabilities(noise).shape == (*noise.shape, 1 + len(model.structures))


@pytest.mark.parametrize("name", ["syn", "sunnybrook-small"])
def test_a_folder_does_not_hide_a_name(tmp_path, monkeypatch, name):
    """`--model syn` is ANTs' SyN, also where a folder of results is called so."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_method(name).name == {"syn": "syn"}.get(name, "ldm_morph")
    with pytest.raises(ValueError, match="is not a run directory"):
        load_method(f"./{name}")


# -- weights that are in the repository but not in the wheel

FETCHED = "sunnybrook-small"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The package as installed from its wheel, and a cache of its own; where the file will be."""
    for name in set(weights.SHA256) - weights.FETCHED:
        shutil.copytree(weights.FOLDER / name, tmp_path / "package" / name)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "package")
    monkeypatch.setenv("LDM_MORPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights" / f"{FETCHED}.safetensors"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The folder of a web server at the address that is set; ask for it before `wheel`."""
    folder = tmp_path / "served"
    folder.mkdir()
    original, _ = weights.named_weights(FETCHED)
    shutil.copy(original, folder / f"{FETCHED}.safetensors")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as at:
        threading.Thread(target=at.serve_forever, daemon=True).start()
        monkeypatch.setenv(weights.ADDRESS, f"http://127.0.0.1:{at.server_port}/")
        yield folder
        at.shutdown()


@pytest.mark.parametrize("before", [None, b"damaged"])
def test_weights_are_fetched_once(served, wheel, before, monkeypatch):
    if before:
        wheel.parent.mkdir(parents=True)
        wheel.write_bytes(before)
    assert weights.named_weights(FETCHED) == (wheel, weights.SHA256[FETCHED])
    assert sha256(wheel) == weights.SHA256[FETCHED]
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
    monkeypatch.delenv(weights.ADDRESS)
    (served / wheel.name).unlink()
    assert weights.named_weights(FETCHED)[0] == wheel  # from the cache


@pytest.mark.parametrize("wrong", ["other bytes", "nothing there", "no server", "no address"])
def test_weights_that_cannot_be_fetched(served, wheel, wrong, monkeypatch):
    if wrong == "other bytes":
        (served / wheel.name).write_bytes(b"not these")
    elif wrong == "nothing there":
        (served / wheel.name).unlink()
    elif wrong == "no server":
        monkeypatch.setenv(weights.ADDRESS, "http://127.0.0.1:9")  # the discard port
    else:
        monkeypatch.delenv(weights.ADDRESS)
    with pytest.raises(WeightsError) as told:
        load_method(FETCHED)
    for part in (str(wheel), weights.ADDRESS, "by hand", f"weights/{FETCHED}/model.safetensors"):
        assert part in str(told.value)
    assert not wheel.parent.exists() or not list(wheel.parent.iterdir())


def test_weights_of_the_wheel_are_not_fetched(wheel):
    assert set(weights.SHA256) - weights.FETCHED == set(weights.shipped.__wrapped__())
