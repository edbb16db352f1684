"""From a cine to the motion of its tissue, its strain, and files.

Top to bottom: `jobs` (files to files, tables of files), `outputs`, `measures`, `anatomy` (masks,
contours and landmarks of the reference frame), `tracked` (the Python API), and below them all
`registering.tracking`.
"""
