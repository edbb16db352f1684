"""Run by test_devices.py on two simulated devices: the training step against `jax.pmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_run import get_config

from ldm_morph_jax.devices.mesh import global_batch, over_batches, replicated_jit
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.training.optimiser import adam
from ldm_morph_jax.training.program import lower_step
from ldm_morph_jax.training.stages.registration import registration_program


def main():
    assert jax.device_count() == 2
    config = get_config("quick")
    config.registration.model.drop_path_rate = 0.0  # its draws would differ by device
    method = build_method(config)
    program = registration_program(config, method, cached=False)
    state = jax.jit(program.init)(jax.random.key(0))
    images = np.random.default_rng(0).random((2, 8, 32, 32, 1), np.float32)
    batch = {"moving": images[0], "fixed": images[1]}

    optimiser = adam(config.registration.train)

    def pmap_step(state, batch):
        def loss(params):
            return method.loss(params, {}, batch, jax.random.key(1), 0)[0]

        loss, gradient = jax.value_and_grad(loss)(state["params"])
        loss, gradient = jax.lax.pmean((loss, gradient), "data")
        updates, moments = optimiser.update(gradient, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimiser": moments}, loss

    pmapped, losses = jax.pmap(pmap_step, axis_name="data", in_axes=(None, 0))(
        state, jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    )
    mesh = program.mesh
    stepped, terms = lower_step(program, seed=0).compile()(
        jax.tree.map(jnp.copy, state), {}, global_batch(batch, mesh), np.int32(0)
    )
    np.testing.assert_allclose(terms["loss"], losses[0], rtol=1e-6)
    # Adam's first moment is a tenth of the gradient
    for ours, theirs in zip(
        jax.tree.leaves(stepped["optimiser"][0].mu),
        jax.tree.leaves(pmapped["optimiser"][0].mu),
        strict=True,
    ):
        theirs = np.asarray(theirs)[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max() + 1e-12)

    # validation over two devices: five rows in batches of three, that is four
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    times = replicated_jit(mesh)(lambda scale, x: scale * x)
    found = over_batches(times, 3.0, rows, batch_size=3, mesh=mesh)
    np.testing.assert_array_equal(found, 3 * rows)
    print("the step is what pmap computes")


main()
