"""D4RL's physics, MuJoCo 2.1.0, on mujoco 3.4.0. Shared by the locomotion tasks and the two mazes."""

import mujoco
import numpy as np

MUJOCO_VERSION = "3.4.0"


def require_mujoco_version() -> None:
    """Raise RuntimeError unless mujoco is the version whose contacts are D4RL's (3.5.0 began to add up margins)."""
    if mujoco.__version__ != MUJOCO_VERSION:
        raise RuntimeError(
            f"D4RL's contact physics needs mujoco {MUJOCO_VERSION} and this is mujoco {mujoco.__version__}: "
            f"run `pip install mujoco=={MUJOCO_VERSION}`."
        )


def compile_model(spec: mujoco.MjSpec, width: int, height: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Compile `spec` as MuJoCo 2.1.0 would, for an environment that renders frames of `width` x `height` pixels.

    Until 2.1.1 MuJoCo gave a capsule the mass and inertia of a cylinder that is longer by half the capsule's radius
    at each end. A twin of the model with such cylinders yields them; shapes, and so contacts, stay those of `spec`.

    Raises: RuntimeError where mujoco's version is not MUJOCO_VERSION.
    Source: MuJoCo's changelog, 2.1.1 ("capsule inertias are now exact") and 3.5.0 (contact margins).
    """
    require_mujoco_version()
    twin = spec.copy()
    for geom in twin.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
            capsule_to_cylinder(geom)
    twin_model = twin.compile()

    model = spec.compile()
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
