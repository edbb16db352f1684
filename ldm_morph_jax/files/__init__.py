"""Reading and writing files: images, transforms, published checkpoints, weights."""
