"""Pure functions on arrays: geometry, diffusion, losses, metrics.

The conventions of the whole project are defined here.

Arrays
    NHWC. Images are `[B, H, W, 1]` float32 in [0, 1]; label masks `[B, H, W, 1]` uint8, 0 is
    background. Metrics, which score one pair at a time on the host, take the same without `B`.
Displacements
    `[B, H, W, 2]` float32 in **pixels**, components in axis order **(row, column)**, defined on the
    grid of the fixed image.
Pull-back
    warped(x) = moving(x + u(x)). The value at a pixel of the fixed image is read from the moving
    image, so the point x of the fixed image corresponds to the point x + u(x) of the moving image,
    not the other way round. phi = id + u is the map.
Pixels
    Pixel (i, j) is the point with coordinates (i, j): centres at integers, the image spans
    [0, H-1] x [0, W-1]. A network output in [-1, 1] therefore spans 2 per H-1 pixels. Outside the
    grid, images and displacements continue with their border values.
Pairs
    Channel 0 is moving, channel 1 is fixed.
Units
    Everything is in pixels. Millimetres occur only where files are read and written, and in the
    distances of `metrics`, which take a spacing in (row, column) order.
Time
    Diffusion times are 0-based indices into the schedule; a clean latent has abar = 1.
Precision
    Coordinates, displacements, losses and schedules are float32 or better, even if images or
    features are bfloat16.
"""
