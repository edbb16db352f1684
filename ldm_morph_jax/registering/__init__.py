"""Images of any size: onto the model grid and back, refinement, results, files.

Top to bottom: `jobs` and `batch` (files to files), `saved` (what is done with a saved transform),
`outputs`, `verdict`, `measures`, `registrar` (the Python API), `result`, `prediction`, `search`
(refinement), `grid`, `method` (what they need of a method).
"""
