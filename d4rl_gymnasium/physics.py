"""D4RL's physics, MuJoCo 2.1.0, on mujoco 3.4 to 3.10: the versions on which all recordings are met (docs/tasks.md)."""

import mujoco
import numpy as np

FIRST_VERSION, LAST_VERSION = (3, 4), (3, 10)  # 3.11 moves the hammer by 2e-6 in a step


def mujoco_version() -> tuple[int, int]:
    major, minor, *_ = mujoco.__version__.split(".")
    return int(major), int(minor)


def require_mujoco_version() -> None:
    """Raise RuntimeError unless D4RL's physics has been shown for this version of mujoco."""
    if not FIRST_VERSION <= mujoco_version() <= LAST_VERSION:
        raise RuntimeError(
            f"D4RL's physics has been shown for mujoco 3.4 to 3.10 and this is mujoco {mujoco.__version__}: "
            'run `pip install "mujoco>=3.4,<3.11"`.'
        )


def restore_contacts(model: mujoco.MjModel) -> None:
    """Give `model` the contacts that it had in MuJoCo before 3.5. In place; does nothing in those versions.

    For two geoms of margins m and n these versions took max(m, n), later ones m + n. Every model here has one margin
    above 0, and no two geoms without it that could touch: half of it on every geom gives each pair the old margin.
    From 3.8 on MuJoCo also looks for several contacts where two convex shapes meet, unless told not to.

    Source: MuJoCo's changelog, 3.5.0 (contact margins) and 3.8.0 (multiccd).
    """
    if mujoco_version() >= (3, 5):
        for values in (model.geom_margin, model.geom_gap):
            values[:] = values.max() / 2
    if mujoco_version() >= (3, 8):
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_MULTICCD


def compile_model(spec: mujoco.MjSpec, width: int, height: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Compile `spec` as MuJoCo 2.1.0 would, for an environment that renders frames of `width` x `height` pixels.

    Until 2.1.1 MuJoCo gave a capsule the mass and inertia of a cylinder that is longer by half the capsule's radius
    at each end. A twin of the model with such cylinders yields them; shapes, and so contacts, stay those of `spec`.

    Raises: RuntimeError where mujoco is none of the versions for which this has been shown.
    Source: MuJoCo's changelog, 2.1.1 ("capsule inertias are now exact").
    """
    require_mujoco_version()
    twin = spec.copy()
    for geom in twin.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
            capsule_to_cylinder(geom)
    twin_model = twin.compile()

    model = spec.compile()
    restore_contacts(model)
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND  # came after 2.1.0; a lone robot is slower with them
    for field in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        getattr(model, field)[:] = getattr(twin_model, field)
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)  # gymnasium's MujocoEnv does the same
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    mujoco.mj_setConst(model, mujoco.MjData(model))  # derive the rest from these; this moves the data off qpos0
    return model, mujoco.MjData(model)


def capsule_to_cylinder(geom: mujoco.MjsGeom) -> None:
    """Turn a capsule, given by its ends or by its half length, into MuJoCo 2.1.0's stand-in for it. In place."""
    geom.type = mujoco.mjtGeom.mjGEOM_CYLINDER
    extra = geom.size[0] / 2
    start, end = np.split(np.array(geom.fromto), 2)
    if np.isfinite(start).all():
        along = (end - start) / np.linalg.norm(end - start)
        geom.fromto = np.concatenate([start - extra * along, end + extra * along])
    else:
        geom.size = geom.size + [0, extra, 0]
