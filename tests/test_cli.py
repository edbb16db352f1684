"""The console command, the spelling of options, what is imported when, the compilation cache."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import in_process
import pytest

import ldm_morph_jax
from ldm_morph_jax import cli, commands
from ldm_morph_jax.experiments import experiment_file

ROOT = Path(__file__).parent.parent
SLOW_IMPORTS = (
    "jax tensorflow_datasets grain orbax matplotlib pydicom nibabel SimpleITK flax scipy absl"
).split()


def call(*arguments, **environment):
    """A command in a fresh process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "words, completed",
    [
        (["tr"], {"track", "train"}),
        (["register", "--moving-"], {"--moving-mask"}),
        (["register", "--affine", ""], {"none", "rigid", "affine"}),
    ],
)
def test_bash_completes_commands_options_and_choices(words, completed, bash_script):
    given = " ".join(f"'{word}'" for word in ("ldm-morph", *words))
    code = f"source {bash_script}; COMP_WORDS=({given}); COMP_CWORD={len(words)}; _ldm_morph"
    done = subprocess.run(
        ["bash", "-c", code + '; echo "${COMPREPLY[@]}"'], capture_output=True, text=True
    )
    assert set(done.stdout.split()) == completed, done.stderr


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ldm-morph.bash"
    path.write_text(cli.completion("bash"))
    return path


def test_shells_that_are_not_known(capsys):
    for arguments in (["tcsh"], []):
        with pytest.raises(SystemExit) as ended:
            cli.main(["--completion", *arguments])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "expected bash, zsh, fish, powershell" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import ldm_morph_jax; ldm_morph_jax.__version__, dir(ldm_morph_jax)",
        "from ldm_morph_jax import cli; cli.main(['--help'])",
        *(
            "import contextlib\nwith contextlib.suppress(SystemExit):\n"
            f"    from ldm_morph_jax import cli; cli.main(['{name}', '--help'])"
            for name in ("register", "warp", "jacobian")
        ),
    ],
)
def test_help_and_import_are_light(code):
    done = call("-c", f"{code}\nimport sys; print(); print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    imported = done.stdout.splitlines()[-1].split()
    assert "ldm_morph_jax" in imported
    assert not set(SLOW_IMPORTS) & set(imported)


def test_help_version_and_unknown_commands(capsys):
    cli.main(["--help"])
    told = capsys.readouterr().out
    for name, what in cli.COMMANDS.items():
        assert f"{name} " in told and what in told
    cli.main(["--version"])
    assert capsys.readouterr().out == f"ldm-morph {ldm_morph_jax.__version__}\n"
    for arguments, message in (([], "usage: ldm-morph"), (["regster"], "the command is 'regster'")):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name):
    done = call("-m", "ldm_morph_jax.cli", name, "--help")
    assert done.returncode == 0, done.stderr
    assert "options:" in done.stdout
    options = [word for word in done.stdout.split() if word.startswith("--")]
    assert options and not any("_" in option for option in options if "." not in option)


def test_the_console_command_is_installed():
    setup = (ROOT / "setup.py").read_text()
    assert '"console_scripts": ["ldm-morph = ldm_morph_jax.cli:main"]' in setup


def test_public_names():
    for name in ldm_morph_jax.__all__:
        assert getattr(ldm_morph_jax, name)
        assert name in dir(ldm_morph_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ldm_morph_jax.nothing


@pytest.mark.parametrize("option", ["--moving-mask", "--moving_mask"])
def test_either_spelling_of_register(option, tmp_path, capsys):
    register = importlib.import_module("ldm_morph_jax.register")
    files = ["--fixed", "b.png", option, "m.png", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        register.main(files)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --moving missing (or use --batch or --example)\n"


@pytest.mark.parametrize("option", ["--dry-run", "--dry_run"])
@pytest.mark.parametrize("command", [("benchmark",), ("cli", "benchmark")])
def test_either_spelling_flags(option, command, tmp_path):
    config = ("--config", ROOT / "configs/benchmark/phantom.py")
    done = in_process.call(*command, *config, "--out", tmp_path / "out", option)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and not (tmp_path / "out").exists()


def test_experiments_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from any folder
    assert experiment_file("dir/x.py:small") == "dir/x.py:small"
    found = experiment_file("camus_2ch:small")
    assert found == f"{ROOT / 'configs' / 'camus_2ch.py'}:small"
    with pytest.raises(ValueError, match="'sunybrok', expected .*did you mean sunnybrook"):
        experiment_file("sunybrok")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--config", "sunybrok"], "expected --workdir RUN"),
        (["--no-such-option"], "Unknown option: --no-such-option"),
        (["--workdir=x", "stray", "words"], "unexpected arguments stray words"),
        (["--wrkdir=x"], "Did you mean --workdir"),
        ([], "--workdir"),
    ],
)
def test_wrong_flags_get_one_line(arguments, message):
    done = in_process.call("cli", "evaluate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and not done.stdout


# -- the compilation cache

COMPILE = """
import json, jax, jax.numpy as jnp, sys
from ldm_morph_jax import commands
commands.use_compilation_cache(at_least_seconds=0.0)
assert jax.jit(lambda a: jnp.sin(a) + 1)(jnp.ones(3)).shape == (3,)
print(json.dumps(jax.config.jax_compilation_cache_dir))
"""


def cache_after(**environment):
    """The cache directory of a process that compiled something, and what it told."""
    environment = {"LDM_MORPH_CACHE": "", "JAX_COMPILATION_CACHE_DIR": ""} | environment
    done = call("-c", COMPILE, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.integration
def test_places_of_the_cache(tmp_path):
    ours, theirs, home = (str(tmp_path / name) for name in ("ours", "theirs", "home"))
    directory, _ = cache_after(LDM_MORPH_CACHE=ours, JAX_COMPILATION_CACHE_DIR=theirs)
    assert directory == ours and os.listdir(ours) and not os.path.exists(theirs)
    assert cache_after(JAX_COMPILATION_CACHE_DIR=theirs)[0] == theirs and os.listdir(theirs)
    directory, _ = cache_after(HOME=home)
    assert directory == f"{home}/.cache/ldm_morph_jax" and os.listdir(directory)


@pytest.mark.integration
def test_without_a_place_for_the_cache(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("HOME", "LDM_MORPH_CACHE"):
        directory, told = cache_after(**{name: str(tmp_path / "file")})
        assert directory is None and not told
    # a container's user that no file lists has no home: Path.home raises RuntimeError
    code = f"import os, pwd; del os.environ['HOME']; os.getuid = lambda: 54321\n{COMPILE}"
    done = call("-c", code, LDM_MORPH_CACHE="", JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is None


def test_read_only_cache(tmp_path, monkeypatch):
    """What is there is read; nothing is written, and nothing complains."""
    import jax

    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in settings}
    monkeypatch.setenv("LDM_MORPH_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    try:
        commands.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        assert jax.config.jax_persistent_cache_min_compile_time_secs == float("inf")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


# -- training's own options


def test_train_lists_experiments(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    told = capsys.readouterr().out
    assert "  quickstart              Quickstart: the whole method, small, on the built-in" in told
    assert "baselines/voxelmorph" in told and "benchmark/" not in told


def test_train_prints_its_configuration(capsys):
    cli.main(["train", "--config", "quickstart", "--print-config", "--config.seed=3"])
    lines = capsys.readouterr().out.splitlines()
    assert "--config.seed=3" in lines and "--config.registration.train.steps=2750" in lines
    assert "--config.autoencoder.model.channel_multipliers='(1, 2, 2)'" in lines


# -- processes that end early


INTERRUPTED = """
import hashlib, time
from ldm_morph_jax import commands
commands.run(lambda: print("working", flush=True) or {work})
"""


@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(60)",
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",  # as XLA: minutes without Python
    ],
)
def test_an_interrupt_ends_in_one_line(work):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(work=work)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "working\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "interrupted\n")


def test_a_platform_that_is_not_there(monkeypatch, capsys):
    import jax

    def devices():
        raise AssertionError  # what JAX does where only an absent platform is asked for

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "--config", "quickstart"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: JAX_PLATFORMS is 'cuda', but JAX finds no ")


def test_plan_estimates_the_duration(capsys, tmp_path):
    config = ["--config", "method:voxelmorph:folder:small", "--config.data.image_size=32"]
    cli.main(["plan", *config, "--json", str(tmp_path / "plan.json")])
    told = capsys.readouterr().out
    facts = json.loads((tmp_path / "plan.json").read_text())
    [(name, stage)] = facts["stages"].items()  # no LDM to train
    assert (name, stage["steps"]) == ("registration", 1500)
    flops = stage["steps"] * stage["flops_per_step"]
    assert facts["seconds"] == pytest.approx(flops / facts["flops_per_second"])
    assert "of training steps on this machine" in told and "peak GB" not in told
