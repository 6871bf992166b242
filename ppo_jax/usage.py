"""What the commands say of themselves."""

USAGE = """\
usage: ppo-jax COMMAND ...

PPO fine-tuning of language models in JAX.

commands:
  train EXPERIMENT [--section.key VALUE ...]     train, or go on; every field is a flag
  sft EXPERIMENT [--section.key VALUE ...]       the same on given responses: the file's SFT
  reward-model EXPERIMENT [...]                  the same on preferences: its REWARD_MODEL
  eval EXPERIMENT [--against @sft] [...]         held-out prompts: scores, pass@k, wins, diversity
  pipeline EXPERIMENT [...]                      these four in turn, those that the file defines
  generate --model DIR --prompts F --out F       continue prompts, with log-probabilities
  score --model DIR --data F --out F             log-probabilities of given responses
  export --model DIR --out DIR                   write a Hugging Face or PEFT folder
  plan EXPERIMENT [--device h200] [...]          time, memory and fit, before anything runs
  plan EXPERIMENT --compile --accelerator v6e-8  the same step compiled for a TPU slice or a --gpu
  bench [WORKLOAD ...] [--compare F] [...]       time iterations against what the device allows
  sweep EXPERIMENT [--list | --only CELL] [...]  an ablation's cells, those that are not done
  report EXPERIMENT [--metrics eval/scores ...]  tables, intervals and plots of an experiment's runs
  report RUN_FOLDER | --index                    a run's page; the table of all results

`ppo-jax COMMAND --help` lists the flags of a command, `ppo-jax train EXPERIMENT --help` those of an
experiment with their values in it. Exit codes: 0 done, 2 usage, configuration or data, 3 numerical
abort, 4 checkpoint unusable, 5 run folder locked, 6 storage, 7 reward failed, 75 preempted.
"""

TRAIN_USAGE = """\
usage: ppo-jax {command} EXPERIMENT [--section.key VALUE ...]

EXPERIMENT is the path of a .py file that defines {defines}, or a name in experiments/:
{experiments}

Every field of its {base} is a flag, for example
  ppo-jax {command} {example} --run.seed 1 --optim.weight_decay None --run.progress False
`ppo-jax {command} EXPERIMENT --help` lists them all with their values in that experiment. Beside
them:
  --strict_resume        exit with code 4 instead of going back past a damaged checkpoint
  --allow_config_change  go on with other options than the checkpoint was made with
  --sft.run.cell CELL    the cell of the run that @sft means, where it is not the one that the
                         file's SFT has; likewise --reward-model.run.cell
A run of several processes needs no flag on Cloud TPU, Slurm, Open MPI and Kubernetes; elsewhere
each gets
  --coordinator HOST:PORT --processes N --process K   process 0 listens there; K counts from 0
  --join_seconds 300                                  that they wait for each other at the start
  --distributed off                                   alone, whatever the cluster says
"""

PIPELINE_USAGE = """\
usage: ppo-jax pipeline EXPERIMENT [--run.seed 1] [--run.dir runs] [--section.key VALUE ...]

Runs, each in a process of its own, the stages that the experiment's file defines: sft (SFT),
reward-model (REWARD_MODEL), train and eval. A stage that is complete does nothing, one that was
stopped goes on. --run.seed and --run.dir go to all, --STAGE.section.key VALUE to that stage, as
  ppo-jax pipeline arithmetic --sft.run.iterations 200 --hparams.kl_coef 0.01
and any other flag to train and eval. With --sft.run.cell CELL another SFT stands beside the first,
and the later stages, whose @sft it is, begin from it and are held against it.
"""

SWEEP_USAGE = """\
usage: ppo-jax sweep EXPERIMENT [--list | --only CELL ... | --index I] [--jobs N] [--vmap]
                     [--section.key VALUE ...]

EXPERIMENT is the path of a .py file that defines GRID or RUNS and SEEDS, or a name in experiments/
or experiments/ablations/:
{experiments}

A cell is a variant with a seed; its run is `ppo-jax train` in RUN_DIR/EXPERIMENT/CELL-HASH/seedK.
Done ones are skipped, half-done ones go on; one that was begun with another configuration, code or
data is refused (code 4). SFT and reward models that cells start from are trained first; a key of
theirs in GRID or RUNS, as "sft.run.iterations", makes one for each of its values.
  --list                 the cells: index, name, seed, hash, status; nothing is run
  --only CELL ...        by name, as lam=0.95, lam=* or lam=0.95/seed3
  --index I              the one at this place of the list, from 0: a task of an array, a TPU VM
  --jobs N               processes at a time on this machine; 1 where one holds the TPU
  --vmap                 cells that differ in seeds and hparams alone run as one compiled program,
                         dealt to the devices; rewards must be part of the program
  --strict_resume, --allow_config_change   as of `ppo-jax train`
Any field of BASE is a flag for all cells, and --sft.key that of a stage. The exit code is that of
the first run that failed; the others are run all the same.
"""

BENCH_USAGE = """\
usage: ppo-jax bench [WORKLOAD ...] [--iterations 5] [--warmup 2] [--out DIR] [--compare FILE]
                     [--section.key VALUE ...]

WORKLOAD is the path of an experiment file, or a name in experiments/bench/ (none: all that are
meant for this device):
{workloads}

Writes DIR/<workload>-<device>-<time>.json (experiments/bench/results); --compare shows an earlier
one beside it. Every field of a workload's BASE is a flag: `ppo-jax bench WORKLOAD --help`.
"""
