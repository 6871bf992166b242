"""Configuration of a run: frozen nested dataclasses, and the traced hyper-parameters.

`Config` without its `hparams` is static: shapes and choices of algorithm, so changing it may
recompile. `HParams` is a pytree of scalars handed to the compiled step: changing one never does.
A field that is `None` is a feature that is not in the program at all.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import jax


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary wavelengths are stretched: all alike, or by Llama 3's rule."""

    kind: Literal["llama3", "linear"] = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0  # this and the rest: llama3 alone
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


Family = Literal[
    "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2", "gemma3_text"
]  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of a decoder (Hugging Face's key in brackets where it differs).

    The network is what the switches say; `family` names the files it is read from and written as.
    """

    family: Family = "llama"  # [model_type]
    vocab_size: int = 259
    embed_dim: int = 64  # [hidden_size]
    num_layers: int = 2  # [num_hidden_layers]
    num_heads: int = 4  # [num_attention_heads]
    num_kv_heads: int = 2  # [num_key_value_heads]
    head_dim: int = 16
    mlp_dim: int = 128  # [intermediate_size]
    max_positions: int = 512  # [max_position_embeddings], tokens
    position: Literal["rope", "learned"] = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None  # leading dimensions of a head that rotate; None: all of them
    local_rope_theta: float | None = None  # of layers with a window, unscaled; None: as the others
    window: int | None = None  # [sliding_window], tokens a local layer sees, its own included
    local_layers: tuple[bool, ...] | None = None  # which layers have the window; None: all
    attention_scale: float | None = None  # of q.k before the softmax; None: 1/sqrt(head_dim)
    attention_softcap: float | None = None  # cap * tanh(q.k / cap)
    logit_softcap: float | None = None
    fused_qkv: bool = False  # one matrix makes q, k and v
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output matrix
    qk_norm: bool = False  # RMSNorm of every head's q and k, before the rotation
    norm: Literal["rms", "layer"] = "rms"  # layer: mean removed, with a bias
    norm_plus_one: bool = False  # the norm's scale is 1 + its weight
    norm_eps: float = 1e-5  # [rms_norm_eps]
    sandwich_norm: bool = False  # also normed: what attention and MLP add to the residual
    parallel_residual: bool = False  # attention and MLP read the same input
    gated_mlp: bool = True
    mlp_bias: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    scale_embedding: bool = False  # by sqrt(embed_dim)
    tie_embeddings: bool = True  # [tie_word_embeddings]
    init_std: float = 0.02  # [initializer_range], for random weights
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = (257,)  # [eos_token_id], one or several
    pad_token_id: int = 258  # may equal an EOS id: masks come from lengths

    @property
    def is_local(self) -> tuple[bool, ...]:
        """Which layers see a window only."""
        if self.window is None:
            return (False,) * self.num_layers
        return (True,) * self.num_layers if self.local_layers is None else self.local_layers


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int | None = None  # None: no adapters, every weight trains
    alpha: float | None = None  # the adapters' product is scaled by alpha / rank; None: 2 x rank
    targets: tuple[str, ...] = ("*",)  # patterns of matrices, as q_proj or mlp.*; *: all of a layer


@dataclass(frozen=True)
class ModelOptions:
    path: str | None = "smollm2-135m"  # known name, folder or hub id; None: random
    base_path: str | None = None  # what the adapters at path lie on; None: as they name it
    trust_remote_code: bool = False  # run a tokenizer's own Python; by flag alone
    shape: ModelConfig = ModelConfig()  # of the random model, read only when path is None
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bf16 off the CPU
    scan_layers: Literal["auto", "scan", "unroll"] = "auto"  # in the update; auto: by depth
    remat: Literal["none", "dots", "full"] = "full"  # what a layer recomputes in the backward pass
    logit_chunk: int = 256  # tokens whose logits exist at once, per device
    critic: Literal["shared", "separate"] = "shared"  # head on the policy's trunk, or a model
    critic_path: str | None = None  # the separate critic's start; None: a copy of the policy
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # of whole sequences; by platform
    lora: LoraOptions = LoraOptions()


@dataclass(frozen=True)
class DataOptions:
    path: str = "experiments/data/openings.jsonl"  # .jsonl or .jsonl.gz with a `prompt` column
    eval_path: str | None = None  # held-out rows, of the same columns
    eval_rows: int | None = None  # the first so many of them; None: all
    max_prompt_tokens: int = 64
    overlong: Literal["error", "drop", "truncate"] = "error"  # truncate keeps the last tokens
    bad_rows: Literal["error", "skip"] = "error"  # skip: unusable rows are counted and left out
    shuffle: bool = True


@dataclass(frozen=True)
class RolloutOptions:
    batch_size: int = 32  # sequences an iteration, over all devices
    samples_per_prompt: int = 1
    max_new_tokens: int = 24
    slots: int | None = None  # sequences decoded at once, over all devices; None: the batch
    compactions: int = 1  # times the decode loop goes on with half its slots as sequences end
    cache_widths: int = 2  # widths the cache is read at, growing with the responses; 1: whole
    min_new_tokens: int = 0  # stop ids are not sampled before this many tokens
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own EOS ids
    top_k: int | None = None  # at most 256
    top_p: float | None = None  # the nucleus is cut at 256 tokens; 1: off
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    weights: Literal["compute", "unmerged", "int8"] = "compute"  # the sampler's; int8: see tis_cap


@dataclass(frozen=True)
class RewardOptions:
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3", "abs", "full"] = "k1"  # full: exact over the vocabulary
    kl_controller: Literal["fixed", "adaptive"] = "fixed"  # adaptive needs hparams.kl_target
    reference: Literal["fixed", "ema", "reset"] = "fixed"
    reference_reset_every: int | None = None  # iterations, with reference="reset"
    normalize_scores: bool = False  # response scores, by the running mean and deviation
    whiten_rewards: bool = False  # token rewards to unit variance, mean kept
    drop_truncated: bool = False  # sequences without a stop token give no gradient
    overlong_buffer: int | None = None  # last tokens over which the overlong penalty rises
    on_error: Literal["abort", "mask"] = "abort"  # mask: a row without a score gives no gradient
    workers: int = 1  # processes of host rewards; more: each gets a share of the rows; 0: in this
    timeout: float = 60.0  # seconds of a host reward for a batch; mask: half, then row by row
    row_timeout: float | None = None  # seconds for a row, rows going one by one; None: all at once


@dataclass(frozen=True)
class PPOOptions:
    advantage: Literal["gae", "rloo", "group_mean", "reinforce"] = "gae"
    epochs: int = 4  # passes of the policy over a rollout
    value_epochs: int | None = None  # passes of the critic; None: as many as the policy's
    minibatches: int = 1  # optimiser steps an epoch
    microbatches: int = 1  # gradient accumulation steps a minibatch; by tokens: at most
    token_sizes: int | None = 5  # static sizes a part's tokens may take; None: padded rows
    whiten_advantages: bool = True
    bootstrap_truncated: bool = False  # V(s_T) after a sequence cut by the length limit
    aggregate: Literal["token-mean", "seq-mean", "seq-sum-norm"] = "token-mean"
    critic_warmup: int = 0  # first iterations in which only the critic learns


@dataclass(frozen=True)
class OptimOptions:
    adam: Literal["optax", "tensorflow"] = "optax"  # where epsilon stands in the bias correction
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-5
    weight_decay: float | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # over run.iterations
    warmup: int = 0  # iterations of linear warm-up
    final_ratio: float = 0.0  # learning rate at the end over that at the start
    max_nonfinite: int = 3  # iterations in a row with a skipped step before the run ends, code 3


@dataclass(frozen=True)
class ParallelOptions:
    """Sizes of the mesh; one of them may be -1, which is what the others leave."""

    data: int = -1  # shares of the batch, the weights whole on each
    fsdp: int = 1  # shares of the batch that hold a share of every weight each
    tensor: int = 1  # shares of the heads and of the matrices' widths
    rollout: Literal["shard_map", "pmap"] = "shard_map"  # pmap: with data alone
    # What rests in the host's memory when it is not in use: the reference, Adam's moments.
    offload: Literal["none", "reference", "optimizer", "both"] = "none"

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) on so many devices; what -1 stands for rounded down, at least 1."""
        asked = self.data, self.fsdp, self.tensor
        rest = max(1, devices // math.prod(size for size in asked if size != -1))
        data, fsdp, tensor = (rest if size == -1 else size for size in asked)
        return data, fsdp, tensor


@dataclass(frozen=True)
class RunOptions:
    iterations: int = 100
    seed: int = 0
    dir: str = "runs"  # root of the run folders; also gs://bucket/folder
    cell: str = "base"
    checkpoint_every: int = 50  # iterations; the last one is always saved
    checkpoint_minutes: float | None = 10.0  # also when so long ago; None: by iterations alone
    keep: int = 2  # newest checkpoints kept
    keep_best: str | None = None  # metric whose best step is kept; lowest: --run.keep_best=-name
    grace: float = 25.0  # seconds from SIGTERM or SIGINT to the end of the process
    samples: int = 8  # continuations of each iteration written to samples.jsonl
    eval_every: int | None = None  # iterations between evaluations on data.eval_path
    show_prompts: int = 3  # fixed prompts continued before and after training
    profile_after: int = 2  # iterations after the start, the next one's phases are timed; 0: never
    compile_cache: str | None = "~/.cache/ppo_jax/xla"
    progress: bool = True  # progress bar on a terminal
    tensorboard: bool = False  # event files of the metrics and samples, in <run folder>/tensorboard


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HParams:
    """Traced scalars of the step. A `None` leaves its feature out of the program."""

    learning_rate: float = 1e-5
    critic_learning_rate: float | None = None  # None: as learning_rate
    temperature: float = 1.0  # divides the logits in rollout, old, new and reference alike
    gamma: float = 1.0
    lam: float = 0.95
    critic_lam: float | None = None  # lambda of the critic's returns; None: as lam
    clip_low: float = 0.2  # ratio kept above 1 - clip_low; inf: no clip
    clip_high: float = 0.2  # ratio kept below 1 + clip_high; inf: no clip
    dual_clip: float | None = None  # bound of ratio * |A| where A < 0; above 1
    log_ratio_clamp: float | None = None  # |log ratio| kept below this, nats
    tis_cap: float | None = None  # bound of the weights p_old / p_sampler of the policy loss
    value_clip: float | None = 0.2  # inf: no clip; None: not in the program
    vf_coef: float = 0.1
    entropy_coef: float | None = None
    target_kl: float | None = None  # the policy stops where approxkl passes 1.5 x this, nats
    max_grad_norm: float | None = 1.0
    kl_coef: float = 0.05  # the start, when the controller is adaptive
    kl_target: float | None = None  # nats a sequence
    kl_gain: float = 0.1  # share of the clipped relative error added to log kl_coef an iteration
    kl_max_step: float = 0.2  # clip of the relative error (KL / target - 1)
    kl_damping: float = 0.0  # share of the error's change added: answers a KL that is still rising
    score_clip: float | None = None  # of response scores, not of token rewards
    missing_eos_penalty: float | None = None  # subtracted where no stop token came
    length_penalty: float | None = None  # subtracted per response token
    overlong_penalty: float | None = None  # full penalty at the limit, see reward.overlong_buffer
    reference_decay: float | None = None  # EMA factor an iteration, with reference="ema"


@dataclass(frozen=True)
class Config:
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    rollout: RolloutOptions = RolloutOptions()
    reward: RewardOptions = RewardOptions()
    ppo: PPOOptions = PPOOptions()
    optim: OptimOptions = OptimOptions()
    parallel: ParallelOptions = ParallelOptions()
    run: RunOptions = RunOptions()
    hparams: HParams = field(default_factory=HParams)

    @property
    def warmups(self) -> dict[str, int]:
        """`optim.warmup` and `ppo.critic_warmup`, of which no run's last iteration is a part."""
        asked = {"optim.warmup": self.optim.warmup, "ppo.critic_warmup": self.ppo.critic_warmup}
        return {key: min(count, self.run.iterations - 1) for key, count in asked.items()}

    @property
    def prompts_per_batch(self) -> int:
        return self.rollout.batch_size // self.rollout.samples_per_prompt

    @property
    def minibatch_size(self) -> int:
        return self.rollout.batch_size // self.ppo.minibatches

    @property
    def microbatch_size(self) -> int:
        return self.minibatch_size // self.ppo.microbatches

    @property
    def value_epochs(self) -> int:
        """Passes of the critic: none for the critic-free estimators."""
        if self.ppo.advantage != "gae":
            return 0
        return self.ppo.epochs if self.ppo.value_epochs is None else self.ppo.value_epochs


def replace(config: Config, **changes) -> Config:
    """A copy with dotted keys changed: `replace(BASE, **{"hparams.kl_coef": 0.1})`."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        nodes = [*accumulate(sections, getattr, initial=config)]
        for node, part in zip(reversed(nodes), [name, *reversed(sections)], strict=True):
            value = dataclasses.replace(node, **{part: value})
        config = value
    return config
