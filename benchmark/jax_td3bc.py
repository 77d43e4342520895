"""A plain jitted TD3+BC in JAX, for benchmark.speed: what one would pick instead for speed.

One learner, the networks of baselines/td3bc.py (robust critic), batch 256, float32. One call of `advance` is STEPS
gradient steps in one `lax.scan`, batches and noise drawn on the device.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 1000  # of one call


class Actor(nn.Module):
    actions: int

    @nn.compact
    def __call__(self, s):
        for _ in range(2):
            s = nn.relu(nn.Dense(256)(s))
        return jnp.tanh(nn.Dense(self.actions)(s))


class Critic(nn.Module):
    @nn.compact
    def __call__(self, s, a):
        x = jnp.concatenate([s, a], -1)
        for _ in range(3):
            x = nn.LayerNorm(epsilon=1e-5)(nn.relu(nn.Dense(256)(x)))
        return nn.Dense(1)(x).squeeze(-1)


class State(NamedTuple):
    actor: dict
    critics: dict
    target_actor: dict
    target_critics: dict
    actor_adam: optax.OptState
    critic_adam: optax.OptState
    key: jax.Array


class JaxLoop:
    period_steps = STEPS

    def __init__(self, data: dict[str, np.ndarray]):
        self.data = [jnp.asarray(data[key], jnp.float32) for key in
                     ("observations", "actions", "next_observations", "rewards", "terminals")]  # fmt: skip
        s, a = self.data[0][:1], self.data[1][:1]
        actor, critic, adam = Actor(a.shape[1]), Critic(), optax.adam(3e-4)
        twins = jax.vmap(critic.apply, in_axes=(0, None, None))
        keys = jax.random.split(jax.random.key(0), 4)
        theta, phi = actor.init(keys[0], s), jax.vmap(critic.init, in_axes=(0, None, None))(keys[1:3], s, a)
        targets = jax.tree.map(jnp.copy, (theta, phi))  # copies, for `run` gives the old state's memory to the new one
        self.state = State(theta, phi, *targets, adam.init(theta), adam.init(phi), keys[3])

        def critic_loss(phi, s, a, y):
            return jnp.square(twins(phi, s, a) - y).mean(1).sum()

        def actor_loss(theta, phi, s, a):
            pi = actor.apply(theta, s)
            q = critic.apply(jax.tree.map(lambda x: x[0], phi), s, pi)
            return -2.5 / jax.lax.stop_gradient(jnp.abs(q).mean()) * q.mean() + jnp.square(pi - a).mean()

        def descend(parameters, gradient, state):
            updates, state = adam.update(gradient, state)
            return optax.apply_updates(parameters, updates), state

        def critic_step(state, key):
            rows, noise = jax.random.split(key)
            s, a, next_s, r, d = (x[jax.random.randint(rows, (256,), 0, len(x))] for x in self.data)
            epsilon = jnp.clip(0.2 * jax.random.normal(noise, a.shape), -0.5, 0.5)
            next_a = jnp.clip(actor.apply(state.target_actor, next_s) + epsilon, -1, 1)
            y = r + 0.99 * (1 - d) * twins(state.target_critics, next_s, next_a).min(0)
            phi, adam_state = descend(state.critics, jax.grad(critic_loss)(state.critics, s, a, y), state.critic_adam)
            return state._replace(critics=phi, critic_adam=adam_state), (s, a)

        def two_steps(state, _):
            key, one, other = jax.random.split(state.key, 3)
            state, _ = critic_step(state._replace(key=key), one)
            state, (s, a) = critic_step(state, other)
            gradient = jax.grad(actor_loss)(state.actor, state.critics, s, a)
            theta, adam_state = descend(state.actor, gradient, state.actor_adam)
            polyak = lambda target, online: jax.tree.map(lambda t, x: t + 0.005 * (x - t), target, online)  # noqa: E731
            return state._replace(
                actor=theta, actor_adam=adam_state, target_actor=polyak(state.target_actor, theta),
                target_critics=polyak(state.target_critics, state.critics),
            ), None  # fmt: skip

        self.run = jax.jit(lambda state: jax.lax.scan(two_steps, state, None, STEPS // 2)[0], donate_argnums=0)

    def advance(self) -> None:
        self.state = jax.block_until_ready(self.run(self.state))
