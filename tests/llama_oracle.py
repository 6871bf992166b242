"""A Llama decoder in float64 numpy, one sequence, head and position at a time."""

import jax
import numpy as np


def slow_frequencies(config):
    """The published rule, one rotary pair after another (Llama 3.1 model card's code)."""
    K = config.head_dim
    frequencies = [config.rope_theta ** (-2 * i / K) for i in range(K // 2)]
    scaling = config.rope_scaling
    if scaling is None:
        return np.array(frequencies)
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
            scaled.append(frequency)
        elif wavelength > scaling.original_max_positions / scaling.low_freq_factor:
            scaled.append(frequency / scaling.factor)
        else:
            turns = scaling.original_max_positions / wavelength
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            smooth = (turns - low) / (high - low)
            scaled.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(scaled)


def slow_hidden(config, params, ids_S):
    """float64 hidden states of one sequence without padding, a head and a position at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    norm = lambda x_SD, scale_D: (
        x_SD / np.sqrt((x_SD**2).mean(-1, keepdims=True) + config.norm_eps) * scale_D
    )
    S, K, half = len(ids_S), config.head_dim, config.head_dim // 2
    angles_SK = np.arange(S)[:, None] * slow_frequencies(config)

    def turn(x_SK):
        a, b = x_SK[:, :half], x_SK[:, half:]
        cos, sin = np.cos(angles_SK), np.sin(angles_SK)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)

    x_SD = params["embed"]["embedding"][ids_S]
    for layer in params["layers"]:
        h_SD = norm(x_SD, layer["attn_norm"]["scale"])
        q, k, v = (h_SD @ layer[name]["kernel"] for name in "qkv")
        out = []
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            cut = lambda y, i: y[:, i * K : (i + 1) * K]
            q_SK, k_SK, v_SK = turn(cut(q, head)), turn(cut(k, group)), cut(v, group)
            rows = []
            for s in range(S):
                score = q_SK[s] @ k_SK[: s + 1].T / np.sqrt(K)
                weight = np.exp(score - score.max())
                rows.append(weight / weight.sum() @ v_SK[: s + 1])
            out.append(np.stack(rows))
        x_SD = x_SD + np.concatenate(out, axis=1) @ layer["o"]["kernel"]
        h_SD = norm(x_SD, layer["mlp_norm"]["scale"])
        gate = h_SD @ layer["gate"]["kernel"]
        gated = gate / (1 + np.exp(-gate)) * (h_SD @ layer["up"]["kernel"])
        x_SD = x_SD + gated @ layer["down"]["kernel"]
    return norm(x_SD, params["final_norm"]["scale"])
