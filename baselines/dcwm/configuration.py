"""Settings of DC-MPC (spec page dcwm.md); W1 and so on are rows of dcwm.md section 7."""

from __future__ import annotations

from dataclasses import dataclass

from iqrl.agent import setting
from iqrl.quantisers import FSQ_LEVELS

PROPAGATION = ("sample", "sample_no_grad", "weighted_avg", "mode")  # see `world_model.class_weights`
COMPONENTS = {"gaussian": 1, "mixture": 3}  # of dynamics that are continuous and stochastic


@dataclass(frozen=True)
class Config:
    """Defaults follow the last column of dcwm.md section 7; W1 and so on are its rows."""

    # latent (sections 1 and 8)
    quantizer: str = setting("fsq", "what makes codes of latents", choices=("fsq", "vq", "none", "simnorm"))
    fsq_levels: list[int] = setting([5, 3], "levels of each FSQ channel; their number is b, with vq too", **FSQ_LEVELS)
    vq_codes: int = setting(256, "size of the VQ codebook; the source has it with latent_dim=128", low=2, high=65536)
    vq_beta: float = setting(0.25, "weight of the VQ commitment", low=0.0, high=1e6)
    vq_decay: float = setting(0.99, "of the moving averages behind the VQ codebook", low=0.0, high=1.0)
    latent_dim: int = setting(512, "d, latent dimensions, Z without codes; 1024 on dog, humanoid", low=1, high=65536)
    head_encoding: str = setting(
        "codebook", "codes as reward, actor and critics read them", choices=("codebook", "onehot", "label")
    )
    # world model (sections 3 and 8)
    dynamics: str = setting(
        "stochastic", "classes sampled, or regression; without codebook also densities",
        choices=("stochastic", "deterministic", "gaussian", "mixture"),
    )  # fmt: skip
    consistency: str = setting(
        "ce", "of prediction and target: cross-entropy, distance, or likelihood of a density",
        choices=("ce", "mse", "cosine", "nll"),
    )  # fmt: skip
    ce_logits: str = setting(
        "dot", "similarity to each code, with deterministic dynamics and ce (W6)", choices=("dot", "neg_mse", "cos")
    )
    use_delta: bool = setting(False, "deterministic and density dynamics predict the change of the latent")
    unc_prop: str = setting("sample", "next latent while training", choices=PROPAGATION)
    st_hard: bool = setting(True, "samples are codes, by straight-through Gumbel-softmax; else soft ones")
    horizon: int = setting(5, "H, decisions the dynamics are unrolled", low=1, high=100)
    rep_discount: float = setting(0.9, "rho, weight of each further step", low=0.0, high=1.0)
    consistency_coef: float = setting(1.0, "weight of the consistency loss", low=0.0, high=1e6)
    reward_coef: float = setting(1.0, "weight of the reward loss", low=0.0, high=1e6)
    use_decoder: bool = setting(False, "reconstruct observations, weight 1")
    symlog_reward: bool = setting(
        False, "learn from sign(r) log(1 + |r|); true on MyoSuite", omit_default_from_identity=True
    )
    bound_reward: bool = setting(True, "rewards lie in [0, action repeat]; on DeepMind Control alone")
    enc_lr: float = setting(1e-4, "AdamW learning rate of the world model", low=0.0, high=1.0)
    enc_weight_decay: float = setting(0.01, "AdamW weight decay of the world model", low=0.0, high=1.0)
    clip: float = setting(20.0, "largest gradient norm of world model, critics, actor each; 0: none", low=0.0, high=1e6)
    # actor and critics (section 4)
    nstep: int = setting(1, "N of the returns; 2 or 3 on some tasks", low=1, high=100)
    released_nstep: bool = setting(False, "released code's returns (W1)")
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    num_critics: int = setting(5, "critics", low=1, high=100)
    q_sample: int = setting(2, "critics drawn for target, actor and plan; 0 means all", low=0, high=100)
    lr: float = setting(3e-4, "Adam learning rate of actor and critics", low=0.0, high=1.0)
    tau: float = setting(0.005, "rate of the target actor and critics", low=0.0, high=1.0)
    policy_noise: float = setting(0.2, "target policy smoothing, standard deviation", low=0.0, high=10.0)
    noise_clip: float = setting(0.3, "and where it is clipped", low=0.0, high=10.0)
    actor_every: int = setting(2, "critic updates per actor update", low=1, high=1000)
    # planning (section 5)
    mpc: bool = setting(True, "plan; false acts with the actor, the model-free variant")
    plan_horizon: int = setting(3, "decisions in a plan", low=1, high=100)
    plan_iterations: int = setting(6, "J", low=1, high=100)
    plan_samples: int = setting(512, "sequences valued in each iteration", low=2, high=100_000)
    plan_policy: int = setting(24, "of which the actor's", low=0, high=100_000)
    plan_elites: int = setting(64, "sequences that the next iteration learns from", low=1, high=100_000)
    use_top_k: bool = setting(True, "those; false learns from all sequences")
    plan_min_std: float = setting(0.05, "smallest standard deviation", low=0.0, high=10.0)
    plan_max_std: float = setting(2.0, "largest, and the first", low=0.0, high=10.0)
    plan_temperature: float = setting(0.5, "tau_M, inverse temperature; 0.2 on MyoSuite's pose", low=0.0, high=1e6)
    plan_discount: float = setting(0.9, "delta, per decision of a plan (W2)", low=0.0, high=1.0)
    plan_q: str = setting("sample", "critics of the last value: those drawn, or all (W3)", choices=("sample", "all"))
    plan_unc_prop: str = setting("weighted_avg", "next latent while planning", choices=PROPAGATION)
    use_mppi_mean: bool = setting(False, "act with the mean of the plan and not with an elite")
    released_pi_noise: bool = setting(
        False, "released code: the actor's sequences are all alike, and noisy in evaluation too (W4)"
    )
    # networks (section 2)
    mlp_dims: list[int] = setting([512, 512], "hidden widths of all but the encoder", low=1, high=65536)
    enc_mlp_dims: list[int] = setting([256], "hidden widths of the encoder", low=1, high=65536)
    init: str = setting("torch", "PyTorch's default, or orthogonal", choices=("torch", "orthogonal"))
    # data (sections 4 and 6)
    batch_size: int = setting(512, "slices in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(10_000_000, "replay capacity, transitions; 1e6 in the paper (W8)", low=1000, high=10**9)
    cross_episode_slices: bool = setting(False, "slices may cross episodes, as in the released code (W1)")
    utd: float = setting(1.0, "gradient updates per decision", low=0.0, high=100.0)
    warmup_episodes: int = setting(10, "uniform random; after the last, updates for all of them", low=0, high=10**6)
    noise_initial: float = setting(1.0, "exploration noise, standard deviation, at first", low=0.0, high=10.0)
    noise_final: float = setting(0.1, "and in the end", low=0.0, high=10.0)
    noise_episodes: int = setting(150, "episodes in between; 50 easy, 150 medium, 500 hard tasks", low=1, high=10**6)
