"""What a person looks at: figures, tables, and the scored evaluation of a split with its report.

Everything here runs on the host. Conventions of arrays and displacements: `ldm_morph_jax.ops`.
"""
