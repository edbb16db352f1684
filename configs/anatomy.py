"""The anatomy network: probabilities of structures of the heart, from masks.

    ldm-morph train --config anatomy:acdc --config.data.source=DIR --workdir runs/anatomy-mri
    ldm-morph train --config anatomy:camus --config.data.source=DIR --workdir runs/anatomy-echo
    ldm-morph train --config anatomy --config.data.source=DIR --workdir runs/anatomy

`anatomy` learns the cavity of the left ventricle from Sunnybrook (public domain), `anatomy:acdc`
right ventricle, myocardium and left ventricle from all annotated slices of ACDC, `anatomy:camus`
left ventricle, myocardium and left atrium from CAMUS, apical four-chamber view.
docs/results/anatomy has the results.
"""

from ldm_morph_jax.config import anatomy_config, paper_config

SHORT_AXIS = {
    "rotation_degrees": 180.0,
    "mirror": (0.5, 0.5),
    "scale": 0.35,
    "aspect": 0.1,
    "shift": 0.12,
    "bend": 1.5,
    "squeeze": 0.0,
    "gamma": 0.3,
    "field": 0.25,
    "contrast": 0.12,
    "blur": 1.2,
    "noise": 0.08,
    "coarse": 2.5,
    "cut": 0.1,
    "nothing": 0.08,
}
ECHO = SHORT_AXIS | {
    "rotation_degrees": 25.0,
    "mirror": (0.0, 0.3),
    "scale": 0.25,
    "aspect": 0.25,
    "shift": 0.06,
    "field": 0.35,
    "speckle": 0.2,
}
STRUCTURES = {
    "sunnybrook": ("left ventricle",),
    "acdc": ("right ventricle", "myocardium", "left ventricle"),
    "camus": ("left ventricle", "myocardium", "left atrium"),
}


def get_config(variant: str = "sunnybrook"):
    """`variant`: "sunnybrook" (the default), "acdc" or "camus"."""
    if variant not in STRUCTURES:
        raise ValueError(f"config argument {variant!r}, expected one of {', '.join(STRUCTURES)}")
    c = paper_config()
    c.data.intensity = "percentile"
    with c.unlocked():
        c.anatomy = anatomy_config(STRUCTURES[variant])
        c.anatomy.variation = SHORT_AXIS
        c.anatomy.train.steps = {"sunnybrook": 3000, "acdc": 5000, "camus": 3500}[variant]
    if variant == "sunnybrook":
        c.anatomy.variation.squeeze = 0.7  # few patients, and only the cavity is labelled
        c.data.name, c.data.image_size = "sunnybrook", 256
    elif variant == "acdc":
        c.data.name, c.data.image_size = "acdc_slices", 160
        # True: accept a subset of the patients; field_mm: see ldm_morph_jax/data/acdc_slices.py
        c.data.options = {"allow_partial": False, "field_mm": 0.0}
    else:
        c.data.name, c.data.options = "camus_4ch", {"allow_partial": False}
        c.anatomy.window.spacing_mm = 0.0
        c.anatomy.variation = ECHO
    return c
