"""Do latent diffusion features know anatomy? Dice by labelled patients, with and without them.

    PYTHONPATH=. python tests/label_efficiency.py --source DIR --out rows.csv --plot curve.png

DIR holds the whole stacks of ACDC. A small network learns right ventricle, myocardium and left
ventricle from the masks of 1 to 80 training patients: from pixels, from the frozen features that
LDM-Morph reads ("taps": of its U-Net's encoder after DDIM inversion), or from both. The head, the
number of steps and the labelled patients are the same for all; the learning rate was chosen on
validation patients. A row is one test patient of one training: Dice of every structure over four
images, at a third and two thirds of the stack, at end-diastole and end-systole. Rows that OUT has
already are kept, so that a run that was interrupted goes on.
"""

import argparse
import csv
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from ldm_morph_jax.data import load_dataset, orient
from ldm_morph_jax.methods.ldm import build_features
from ldm_morph_jax.models.anatomy import blocks_of_two, joined_blocks
from ldm_morph_jax.models.layers import group_norm
from ldm_morph_jax.ops.losses import segmentation_loss
from ldm_morph_jax.ops.metrics import dice
from ldm_morph_jax.paper.statistics import compare
from ldm_morph_jax.report.style import line_style, series_colours
from ldm_morph_jax.runs.trained import load_method
from ldm_morph_jax.training.stages.diffusion import diffusion_program

STRUCTURES = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
LABELLED, SEEDS = (1, 2, 5, 10, 50, 80), (0, 1, 2)  # 80 patients are all
PLACES = (1 / 3, 2 / 3)  # of the slices of a stack
TURNS = (0, 1)  # quarter turns of training images: features are computed once for each
WIDTHS = (16, 32, 48, 64)  # channels at 1/4, 1/8, 1/16 and 1/32 of the image
STEPS, BATCH = 150, 4
ROLES = ("moving", "fixed")
PIXELS, CONTROL = "pixels", "taps of untrained"
SHIPPED = "sunnybrook-small"


class Model(NamedTuple):
    """A latent diffusion model: the shipped one, trained on Sunnybrook, or another U-Net after its
    autoencoder, trained on all slices of ACDC's training patients without their masks.

    width: of the U-Net in channels; steps: of 8 images, 0: as it was initialised; None: shipped.
    """

    width: int = 32
    steps: int | None = None


MODELS = {
    SHIPPED: Model(),
    "acdc": Model(32, 200),
    "untrained": Model(32, 0),
}
RATE = 1e-2  # of 0.003 and 0.01 the better one on validation patients, for pixels and for taps
DATA = {"image_size": 128, "intensity": "percentile", "allow_partial": True, "field_mm": 192.0}


class Segmenter(nn.Module):
    """Logits `[B, H, W, 4]` of images `[B, H, W, 1]` in [0, 1], taps `[B, h_l, w_l, C_l]`, or both.

    An encoder from pixels is trained; taps go through one layer of width one for each level. Both
    are brought to `WIDTHS` channels, and the head, a U-Net's decoder, is the same.
    """

    pixels: bool

    @nn.compact
    def __call__(self, image, taps):
        def block(x, features, size):
            x = nn.Conv(features, (size, size), use_bias=False)(x)
            return nn.silu(group_norm(x, 8, epsilon=1e-5, dtype=jnp.float32, name=None))

        levels = [[tap] for tap in taps] or [[] for _ in WIDTHS]
        if self.pixels:
            x = 2 * image - 1
            for _ in range(2):
                x = blocks_of_two(x)
                x = x.reshape(*x.shape[:-2], -1)
            for level, width in enumerate(WIDTHS):
                if level:
                    x = blocks_of_two(x).mean(axis=-2)
                x = block(block(x, width, 3), width, 3)
                levels[level].append(x)
        levels = [
            block(jnp.concatenate([block(x, width, 1) for x in seen], -1), width, 1)
            for seen, width in zip(levels, WIDTHS, strict=True)
        ]
        x = block(levels.pop(), WIDTHS[-1], 3)
        for width, skip in zip(WIDTHS[-2::-1], levels[::-1], strict=True):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = block(jnp.concatenate([x, skip], -1), width, 3)
        x = nn.Conv(16 * (1 + len(STRUCTURES)), (1, 1))(block(x, WIDTHS[0], 3))
        for _ in range(2):
            x = joined_blocks(x.reshape(*x.shape[:-1], 4, -1))
        return x


class Slices:
    """Some slices of a split: images, masks `[turns, N, 128, 128, 1]`, patients `[N]`."""

    def __init__(self, dataset, split: str, turns=(0,)):
        pairs, about = dataset.split(split), dataset.metadata(split)
        of_patient: dict[str, list[int]] = {}
        for number, one in enumerate(about):
            of_patient.setdefault(one["patient"], []).append(number)
        chosen = [
            numbers[round(place * (len(numbers) - 1))]
            for numbers in of_patient.values()
            for place in PLACES
        ]
        both = [(pair, role) for pair in map(pairs.__getitem__, chosen) for role in ROLES]
        images = np.stack([pair[role] for pair, role in both])
        masks = np.stack([pair[f"{role}_mask"] for pair, role in both])
        self.images, self.masks = (
            np.stack([orient(array, k, (1, 2)) for k in turns]) for array in (images, masks)
        )
        self.patients = np.repeat(list(of_patient), len(ROLES) * len(PLACES))


def latent_diffusion_model(model: Model, dataset):
    """(`methods.ldm.LDMFeatures`, its weights)."""
    shipped = load_method(SHIPPED)
    config, frozen = shipped.config.copy_and_resolve_references(), shipped.frozen
    if model.steps is not None:
        with config.unlocked():
            config.diffusion.model.base_channels = model.width
            config.diffusion.train.steps = max(model.steps, 1)
        frozen = frozen | {"unet": _unet(config, frozen, dataset, model.steps)}
    return build_features(config), frozen


def _unet(config, frozen, dataset, steps: int):
    """Parameters of a U-Net after `steps` of the diffusion stage, averaged as it does."""
    program = diffusion_program(config, cached=True)
    state = program.init(jax.random.key(0))
    if not steps:
        return state["ema"]
    images = dataset.images("train")
    encode = jax.jit(lambda x: build_features(config).encode(frozen, x))
    numbers = np.arange(len(images))
    latents = np.concatenate(
        [
            encode(np.stack([orient(images[k]["image"], TURNS[k % len(TURNS)]) for k in part]))
            for part in np.array_split(numbers, len(numbers) // 8)
        ]
    )
    step, rng = jax.jit(program.step), np.random.default_rng(0)
    for number in range(steps):
        batch = {"latent": latents[rng.choice(numbers, config.diffusion.train.batch_size)]}
        key = jax.random.fold_in(jax.random.key(1), number)
        state, terms = step(state, frozen, batch, key, number)
        if number % 50 == 0:
            print(f"diffusion, step {number}: loss {float(terms['loss']):.3f}", flush=True)
    return state["ema"]


def taps_of(name: str, dataset, slices: dict[str, Slices], folder: Path):
    """Split -> taps of every level, `[turns, N, h, w, C]` float16 with mean 0 and SD 1 by channel.

    Mean and SD are those of the training slices, without their masks. Kept in `folder`.
    """
    levels = range(len(WIDTHS))
    files = {split: [folder / f"{name}-{split}-{k}.npy" for k in levels] for split in slices}
    if not all(file.exists() for split in files.values() for file in split):
        folder.mkdir(parents=True, exist_ok=True)
        features, frozen = latent_diffusion_model(MODELS[name], dataset)
        compute = jax.jit(lambda images: features(frozen, images).taps)

        def taps(images):
            parts = [compute(images[k : k + 8]) for k in range(0, len(images), 8)]
            return [np.concatenate(level) for level in zip(*parts, strict=True)]

        turned = {split: [taps(images) for images in one.images] for split, one in slices.items()}
        scales = [(of.mean((0, 1, 2)), of.std((0, 1, 2)) + 1e-6) for of in turned["train"][0]]
        for split, of_split in turned.items():
            for file, level, (mean, sd) in zip(
                files[split], zip(*of_split, strict=True), scales, strict=True
            ):
                np.save(file, ((np.stack(level) - mean) / sd).astype(np.float16))
    return {split: [np.load(file, mmap_mode="r") for file in files[split]] for split in slices}


@functools.cache
def compiled(pixels: bool):
    """(one step of training, the most probable labels), of `Segmenter(pixels)`."""
    network = Segmenter(pixels)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(1e-4)
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, STEPS // 10, STEPS)

    def logits(params, image, taps):
        return network.apply({"params": params}, image, [tap.astype(jnp.float32) for tap in taps])

    def init(seed, image, taps):
        """He's normal kernels, drawn with NumPy: compiling the draws takes longer than training."""
        shapes = jax.eval_shape(network.init, jax.random.key(0), image, taps)["params"]
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            if path[-1].key != "kernel":
                return np.full(leaf.shape, path[-1].key == "scale", np.float32)
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)

        params = jax.tree_util.tree_map_with_path(draw, shapes)
        return params, jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(optimiser.init, params)
        )

    @jax.jit
    def step(params, state, image, taps, mask, number):
        def loss(params):
            return sum(segmentation_loss(logits(params, image, taps), mask[..., 0]))

        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        updates = jax.tree.map(lambda u: -RATE * schedule(number) * u, updates)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def labels(params, image, taps):
        return jnp.argmax(logits(params, image, taps), -1).astype(jnp.uint8)

    return init, step, labels


@dataclasses.dataclass(frozen=True)
class Training:
    """Trainings of one encoder: from pixels, from taps (`taps_of`), or from both."""

    pixels: bool
    taps: dict | None
    slices: dict[str, Slices]

    def batch(self, split, turn, number):
        """Image and taps of slices `number` in turns `turn`; what is not read is empty."""
        image = self.slices[split].images[turn, number] if self.pixels else np.zeros(0)
        return image, [level[turn, number] for level in self.taps[split]] if self.taps else []

    def train(self, labelled: int, seed: int):
        """Parameters learned from the first `labelled` patients of the seed's order."""
        train = self.slices["train"]
        order = np.random.default_rng(seed).permutation(np.unique(train.patients))
        known = np.flatnonzero(np.isin(train.patients, order[:labelled]))
        rng = np.random.default_rng((seed, labelled))
        init, step, _ = compiled(self.pixels)
        params, state = init(seed, *self.batch("train", [0], known[:1]))
        for k in range(STEPS):
            turn, number = rng.integers(len(TURNS), size=BATCH), rng.choice(known, BATCH)
            seen, mask = self.batch("train", turn, number), train.masks[turn, number]
            params, state = step(params, state, *seen, mask, np.float32(k))
        return params

    def scores(self, params, split: str) -> list[dict]:
        """A row per patient of a split: Dice of every structure over the patient's slices."""
        of_split = self.slices[split]
        numbers, (*_, labels) = np.arange(len(of_split.patients)), compiled(self.pixels)
        found = np.concatenate(
            [
                labels(params, *self.batch(split, np.zeros_like(part), part))
                for part in np.split(numbers, len(numbers) // (len(ROLES) * len(PLACES)))
            ]
        )
        rows = []
        for patient in np.unique(of_split.patients):
            own = of_split.patients == patient
            overlap = dice(found[own], of_split.masks[0, own, ..., 0], STRUCTURES)
            rows.append(
                {"patient": patient}
                | {name: f"{overlap[label]:.4f}" for label, name in STRUCTURES.items()}
            )
        return rows


def trainings(dataset, slices: dict[str, Slices], folder: Path) -> Iterator[tuple[str, Training]]:
    """(Name, trainings) of every encoder; features are computed when they are needed first."""
    yield PIXELS, Training(True, None, slices)
    for name in MODELS:
        yield f"taps of {name}", Training(False, taps_of(name, dataset, slices, folder), slices)
    yield (
        f"{PIXELS}, taps of {SHIPPED}",
        Training(True, taps_of(SHIPPED, dataset, slices, folder), slices),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="whole stacks of ACDC")
    parser.add_argument("--prepared", type=Path, default=Path("data"), help="prepared datasets")
    parser.add_argument("--features", type=Path, default=Path("features"), help="kept features")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    dataset = load_dataset("acdc_slices", source=args.source, directory=args.prepared, **DATA)
    slices = {"train": Slices(dataset, "train", TURNS), "test": Slices(dataset, "test")}
    done = set()
    if args.out.exists():
        rows = pd.read_csv(args.out)
        done = set(zip(rows["encoder"], rows["labelled"], rows["seed"], strict=True))
    with open(args.out, "a", newline="") as file:
        columns = ["encoder", "labelled", "seed", "patient", *STRUCTURES.values()]
        table = csv.DictWriter(file, columns)
        if not done:
            table.writeheader()
        for encoder, training in trainings(dataset, slices, args.features):
            for seed, labelled in itertools.product(SEEDS, LABELLED):
                if (encoder, labelled, seed) in done:
                    continue
                began = time.process_time()
                of_patients = training.scores(training.train(labelled, seed), "test")
                about = {"encoder": encoder, "labelled": labelled, "seed": seed}
                table.writerows(about | row for row in of_patients)
                file.flush()
                seconds = time.process_time() - began
                print(f"{encoder}, {labelled}, seed {seed}: {seconds:.1f} s", flush=True)
    rows = pd.read_csv(args.out)
    print(markdown(rows))
    if args.plot:
        draw(rows, args.plot)


def dice_by_seed(rows: pd.DataFrame, encoder: str, labelled: int) -> pd.DataFrame:
    """Mean Dice of the structures, a row per seed, a column per test patient."""
    part = rows[(rows["encoder"] == encoder) & (rows["labelled"] == labelled)]
    part = part.assign(dice=part[list(STRUCTURES.values())].mean(axis=1))
    return part.pivot(index="seed", columns="patient", values="dice")


def markdown(rows: pd.DataFrame) -> str:
    """Mean Dice by encoder and labelled patients, differences to pixels and to untrained taps."""
    encoders, numbers = list(rows["encoder"].unique()), sorted(rows["labelled"].unique())
    header = ["read; labelled patients:", *map(str, numbers)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for encoder in encoders:
        scores = [dice_by_seed(rows, encoder, n) for n in numbers]
        means = " | ".join(f"{one.to_numpy().mean():.3f}" for one in scores)
        lines.append(f"| {encoder} | {means} |")
        others = [PIXELS, CONTROL] if encoder.startswith("taps of") else [PIXELS]
        for other in others if encoder != PIXELS else ():
            if other == encoder:
                continue
            cells = [f"minus {other} [95 %]"]
            for own, n in zip(scores, numbers, strict=True):
                reference = dice_by_seed(rows, other, n).to_numpy()
                difference = compare(own.to_numpy(), reference, list(own.columns))
                cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference[:3]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Mean Dice against labelled patients, with 95 % intervals over test patients."""
    from matplotlib.figure import Figure

    encoders, numbers = list(rows["encoder"].unique()), sorted(rows["labelled"].unique())
    both, models = f"{PIXELS}, ", [name for name in encoders if name.startswith("taps of ")]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = {
        "frozen features": models,
        "pixels and frozen features": [name for name in encoders if name.startswith(both)],
    }
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in (PIXELS, *names):
            style = 0 if name == PIXELS else 1 + models.index(name.removeprefix(both))
            of_patients = [dice_by_seed(rows, name, n).mean(axis=0).to_numpy() for n in numbers]
            ends = [
                np.quantile(
                    np.random.default_rng(0).choice(one, (2000, len(one))).mean(axis=1),
                    (0.025, 0.975),
                )
                for one in of_patients
            ]
            look = {"color": series_colours(dark=False)[style], "linewidth": 1.4}
            means = [one.mean() for one in of_patients]
            axis.plot(numbers, means, linestyle=line_style(style), label=name, **look)
            axis.fill_between(numbers, *np.transpose(ends), alpha=0.15, color=look["color"], lw=0)
        axis.set_xscale("log")
        axis.set_xticks(numbers, [str(n) for n in numbers])
        axis.minorticks_off()
        axis.set_xlabel("labelled patients")
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=7, loc="lower right", frameon=False)
    axes[0].set_ylabel("mean Dice, 50 test patients")
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
