"""Devices and processes: the mesh, and what several processes do together."""
