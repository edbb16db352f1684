"""What a person looks at: figures, tables and HTML pages, drawn from arrays and numbers.

Nothing here reads a run directory or registers anything. Conventions of arrays and displacements:
`ldm_morph_jax.ops`.
"""
