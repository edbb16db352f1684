"""Registers images and cines of any size: one pipeline for pairs and for beats.

Top to bottom:

* files to files: `cine_files` and `pair_files` (one job, a table of jobs), `batch` (tables, what is
  done already), `options` (what users choose), `saved` (what is done with a saved transform)
* what is written and measured: `outputs`, `verdict`, `measures` (of pairs), `heart` (of tracked
  hearts: areas, volumes, strain), `anatomy` (masks, contours and landmarks of the reference frame)
* the Python API: `method` (`load`, the registrar)
* `tracking` (a cine) and `pairs` (a pair), on `search` (the velocity) and `grid`; their `result`
"""
