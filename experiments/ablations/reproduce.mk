# Which experiments make which row of README.md beside this file. Sweeps of one row go one after the
# other; one that was stopped goes on.
REPRODUCE_A1 := kl_penalty kl_penalty_sentiment
REPRODUCE_A2 := clipping
REPRODUCE_A3 := gae_lambda
REPRODUCE_A4 := value_clip
REPRODUCE_A5 := whitening
REPRODUCE_A6 := critics value_pretraining
REPRODUCE_A7 := epochs
REPRODUCE_A8 := eos eos_bug
REPRODUCE_A9 := reward_scale
REPRODUCE_A10 := adam
REPRODUCE_R4 := ziegler
REPRODUCE_R6 := overoptimisation
REPRODUCE_IDS := A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 R4 R6
# Each run by itself: a model too large to be there several times, seconds and memory measured, or a
# judge in Python.
REPRODUCE_ALONE := kl_penalty_sentiment ziegler critics overoptimisation
# Scripts of experiments/control/.
REPRODUCE_CONTROL := cartpole acrobot pendulum lander bandit
# Those that Gymnasium has as well, where the policies are to prove themselves.
REPRODUCE_GYM := cartpole acrobot pendulum

REPRODUCED := $(or $(ONLY),$(REPRODUCE_CONTROL) $(REPRODUCE_IDS))
REPRODUCE_BEST := $(or $(RUN_DIR),runs)/overoptimisation
REPRODUCE_FLAGS := $(if $(RUN_DIR),--run.dir $(RUN_DIR))

# A sweep ends with code 3 where a run's numbers are no longer finite: that is a result.
define reproduce-sweep
$(PY) -m ppo_jax sweep $(1) $(if $(filter $(1),$(REPRODUCE_ALONE)),,--vmap) $(REPRODUCE_FLAGS) $(ARGS) || test $$? -eq 3
$(PY) -m ppo_jax report $(1) $(REPRODUCE_FLAGS)

endef
# $(call reproduce-best-of,WIDTH,COUNT,FILE,SEED): the SFT policy's responses, by the reward model of
# that width and of so many pairs, those of the file.
comma := ,
define reproduce-best-of
test -f $(REPRODUCE_BEST)/best-of-$(1)-of-$(2)-seed$(4)/eval.json || $(PY) -m ppo_jax eval overoptimisation --model @sft --samples 32 --run.seed $(4) --reward-model.run.cell reward-model-model.shape.embed_dim=$(1)$(comma)data.path=experiments-data-menus-$(3).jsonl --out $(REPRODUCE_BEST)/best-of-$(1)-of-$(2)-seed$(4) --run.show_prompts 0 $(REPRODUCE_FLAGS)

endef
# What follows the sweeps of a row.
define reproduce-after-A2
$(PY) experiments/ablations/_clipping.py $(if $(RUN_DIR),--run-dir $(RUN_DIR))
endef
define reproduce-after-R6
$(foreach seed,0 1 2 3 4,$(call reproduce-best-of,16,250,pairs_250,$(seed))$(call reproduce-best-of,32,1000,pairs_1000,$(seed))$(call reproduce-best-of,128,8000,pairs,$(seed)))
$(PY) experiments/ablations/_overoptimisation.py $(if $(RUN_DIR),--run-dir $(RUN_DIR))
endef
define reproduce-script
$(PY) experiments/control/$(1).py --out experiments/results/control/$(1).json $(if $(filter $(1),$(REPRODUCE_GYM)),--gymnasium 10)

endef
$(STAMP)-gym: $(STAMP)-setup
	$(PIP) --editable '.[gym]'
	@touch $@

.PHONY: reproduce
reproduce: $(STAMP)-setup $(if $(filter $(REPRODUCE_GYM),$(REPRODUCED)),$(STAMP)-gym) ## all ablations and control checks, about 10 h on 2 cores, or those of ONLY
	$(if $(filter-out $(REPRODUCE_CONTROL) $(REPRODUCE_IDS),$(ONLY)),$(error ONLY=$(ONLY): expected some of $(REPRODUCE_CONTROL) $(REPRODUCE_IDS)))
	$(foreach name,$(filter $(REPRODUCE_CONTROL),$(REPRODUCED)),$(call reproduce-script,$(name)))
	$(foreach id,$(filter $(REPRODUCE_IDS),$(REPRODUCED)),$(foreach name,$(REPRODUCE_$(id)),$(call reproduce-sweep,$(name)))$(reproduce-after-$(id)))
	$(PY) -m ppo_jax report --index

# Lines of `make help`.
REPRODUCE_HELP := 'ONLY="A3 A8"     of reproduce: rows of experiments/ablations/README.md, cartpole ...'
