"""Images of any size: onto the model grid and back, refinement, registrar."""
