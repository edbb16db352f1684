"""Run by test_devices.py in two processes, of which first one and then the other is late."""

import argparse
import time

import jax
import numpy as np

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import data_mesh, over_batches, replicated_jit

LATE = 35  # seconds; Gloo waits 30


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    arguments = parser.parse_args()
    processes.join(arguments.coordinator, arguments.num_processes, arguments.process_id)

    with processes.together(), processes.main_first("dataset"):
        if processes.is_main():
            time.sleep(LATE)

    mesh = data_mesh()

    @replicated_jit(mesh)
    def doubled(scale, x):
        if not processes.is_main():  # while it is traced, as if it took so long to compile
            time.sleep(LATE)
        return scale * x

    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = over_batches(doubled, np.float32(2), rows, batch_size=2, mesh=mesh)
    np.testing.assert_array_equal(found, 2 * rows)
    np.testing.assert_array_equal(processes.gather(jax.process_index()), [0, 1])
    if processes.is_main():
        print("all came")


main()
