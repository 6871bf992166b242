"""A decoder with every family's switches in float64 numpy, a head and a position at a time."""

import math

import jax
import numpy as np

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(x),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.where(x > 0, x, 0.0),
}


def slow_frequencies(config, local=False):
    """The published rules, one rotary pair after another (Llama 3.1 model card's code)."""
    own = local and config.local_rope_theta is not None
    theta = config.local_rope_theta if own else config.rope_theta
    R = config.rotary_dim or config.head_dim
    frequencies = [theta ** (-2 * i / R) for i in range(R // 2)]
    scaling = None if own else config.rope_scaling
    if scaling is None:
        return np.array(frequencies)
    if scaling.kind == "linear":
        return np.array([frequency / scaling.factor for frequency in frequencies])
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


def slow_norm(config, x_SD, weights):
    scale_D = weights["scale"] + (1.0 if config.norm_plus_one else 0.0)
    rows = []
    for x_D in x_SD:
        if config.norm == "layer":
            x_D = (x_D - x_D.mean()) / math.sqrt(x_D.var() + config.norm_eps)
            rows.append(x_D * scale_D + weights["bias"])
        else:
            rows.append(x_D / math.sqrt((x_D**2).mean() + config.norm_eps) * scale_D)
    return np.stack(rows)


def turn(config, x_SK, local):
    """Rotary positions: the pairs are dimension i and i + R/2 of the R leading ones."""
    frequencies, out_SK = slow_frequencies(config, local), x_SK.copy()
    half = len(frequencies)
    for s in range(len(x_SK)):
        for i, frequency in enumerate(frequencies):
            z = complex(x_SK[s, i], x_SK[s, i + half]) * complex(
                math.cos(s * frequency), math.sin(s * frequency)
            )
            out_SK[s, i], out_SK[s, i + half] = z.real, z.imag
    return out_SK


def slow_head(config, q_SK, k_SK, v_SK, local):
    """One head: each query looks back at every key, or at those in its window."""
    scale = config.attention_scale or 1 / math.sqrt(config.head_dim)
    rows = []
    for s, q_K in enumerate(q_SK):
        first = max(0, s - config.window + 1) if local else 0
        scores = [q_K @ k_K * scale for k_K in k_SK[first : s + 1]]
        if config.attention_softcap is not None:
            cap = config.attention_softcap
            scores = [cap * math.tanh(score / cap) for score in scores]
        weights = np.exp(np.array(scores) - max(scores))
        rows.append(weights / weights.sum() @ v_SK[first : s + 1])
    return np.stack(rows)


def linear(weights, x_SD):
    y_SF = x_SD @ weights["kernel"]
    return y_SF + weights["bias"] if "bias" in weights else y_SF


def slow_attention(config, layer, h_SD, local):
    K, G = config.head_dim, config.num_kv_heads
    if config.fused_qkv:
        q, k, v = np.split(linear(layer["qkv"], h_SD), 3, axis=1)
    else:
        q, k, v = (linear(layer[name], h_SD) for name in "qkv")
    cut = lambda y, i: y[:, i * K : (i + 1) * K]

    def prepared(y, i, norm):
        y_SK = cut(y, i)
        if config.qk_norm:
            y_SK = slow_norm(config, y_SK, layer[norm])
        return y_SK if config.position == "learned" else turn(config, y_SK, local)

    out = []
    for head in range(config.num_heads):
        group = head // (config.num_heads // G)
        q_SK, k_SK = prepared(q, head, "q_norm"), prepared(k, group, "k_norm")
        out.append(slow_head(config, q_SK, k_SK, cut(v, group), local))
    return linear(layer["o"], np.concatenate(out, axis=1))


def slow_mlp(config, layer, h_SD):
    activate, up_SF = ACTIVATIONS[config.activation], linear(layer["up"], h_SD)
    if config.gated_mlp:
        return linear(layer["down"], activate(linear(layer["gate"], h_SD)) * up_SF)
    return linear(layer["down"], activate(up_SF))


def slow_hidden(config, params, ids_S):
    """float64 hidden states of one sequence without padding."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x_SD = params["embed"]["embedding"][ids_S]
    if config.scale_embedding:
        x_SD = x_SD * math.sqrt(config.embed_dim)
    if config.position == "learned":
        x_SD = x_SD + params["positions"]["embedding"][: len(ids_S)]
    for local, layer in zip(config.is_local, params["layers"], strict=True):
        normed = lambda name, y_SD, layer=layer: slow_norm(config, y_SD, layer[name])
        out_SD = slow_attention(config, layer, normed("attn_norm", x_SD), local)
        if config.parallel_residual:
            x_SD = x_SD + out_SD + slow_mlp(config, layer, normed("mlp_norm", x_SD))
            continue
        if config.sandwich_norm:
            out_SD = normed("post_attn_norm", out_SD)
        x_SD = x_SD + out_SD
        out_SD = slow_mlp(config, layer, normed("mlp_norm", x_SD))
        x_SD = x_SD + (normed("post_mlp_norm", out_SD) if config.sandwich_norm else out_SD)
    return slow_norm(config, x_SD, params["final_norm"])


def slow_logits(config, params, hidden_SD):
    """float64 logits of hidden states."""
    if "lm_head" in params:
        logits_SV = hidden_SD @ np.asarray(params["lm_head"]["kernel"], np.float64)
    else:
        logits_SV = hidden_SD @ np.asarray(params["embed"]["embedding"], np.float64).T
    cap = config.logit_softcap
    return logits_SV if cap is None else cap * np.tanh(logits_SV / cap)
